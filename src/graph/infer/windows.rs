//! Spatial sizes of convolutions and pools.

use super::super::{Dim, Node};

fn list(node: &Node, name: &str, n: usize, default: i64) -> Vec<i64> {
    node.ints(name).filter(|v| v.len() == n).map_or_else(|| vec![default; n], <[i64]>::to_vec)
}

/// Output length along one axis of a sliding window.
#[allow(clippy::too_many_arguments)]
fn slide(len: &Dim, kernel: i64, stride: i64, dilation: i64, pads: i64, auto: &str, ceil: bool) -> Dim {
    let Dim::Known(len) = len else { return Dim::Unknown };
    let (len, reach) = (*len as i64, (kernel - 1) * dilation + 1);
    if stride <= 0 {
        return Dim::Unknown;
    }
    let n = match auto {
        "SAME_UPPER" | "SAME_LOWER" => (len + stride - 1) / stride,
        _ => {
            let pads = if auto == "VALID" { 0 } else { pads };
            let span = len + pads - reach;
            if span < 0 {
                return Dim::Unknown;
            }
            if ceil { (span + stride - 1) / stride + 1 } else { span / stride + 1 }
        }
    };
    usize::try_from(n).map_or(Dim::Unknown, Dim::Known)
}

/// Conv: weight `[M, C/g, k…]`.
pub fn conv(node: &Node, x: Option<&[Dim]>, w: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let (x, w) = (x?, w?);
    if x.len() != w.len() || x.len() < 3 {
        return None;
    }
    let n = x.len() - 2;
    let kernel: Vec<Option<i64>> =
        (0..n).map(|i| if let Dim::Known(k) = w[i + 2] { Some(k as i64) } else { node.ints("kernel_shape").and_then(|k| k.get(i).copied()) }).collect();
    let (strides, dilations, pads) = (list(node, "strides", n, 1), list(node, "dilations", n, 1), list(node, "pads", 2 * n, 0));
    let auto = node.str("auto_pad").unwrap_or("NOTSET");
    let mut shape = vec![x[0].clone(), w[0].clone()];
    for i in 0..n {
        shape.push(kernel[i].map_or(Dim::Unknown, |k| slide(&x[i + 2], k, strides[i], dilations[i], pads[i] + pads[i + n], auto, false)));
    }
    Some(shape)
}

/// ConvTranspose: weight `[C, M/g, k…]`.
pub fn conv_transpose(node: &Node, x: Option<&[Dim]>, w: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let (x, w) = (x?, w?);
    if x.len() != w.len() || x.len() < 3 {
        return None;
    }
    let n = x.len() - 2;
    let (strides, dilations, pads, extra) =
        (list(node, "strides", n, 1), list(node, "dilations", n, 1), list(node, "pads", 2 * n, 0), list(node, "output_padding", n, 0));
    let groups = node.int("group").unwrap_or(1);
    let channels = if let Dim::Known(m) = w[1] { usize::try_from(m as i64 * groups).map_or(Dim::Unknown, Dim::Known) } else { Dim::Unknown };
    let mut shape = vec![x[0].clone(), channels];
    for i in 0..n {
        let given = node.ints("output_shape").and_then(|s| s.get(i + s.len() - n).copied());
        let computed = match (&x[i + 2], &w[i + 2], node.str("auto_pad").unwrap_or("NOTSET")) {
            (Dim::Known(len), _, "SAME_UPPER" | "SAME_LOWER") => Some(*len as i64 * strides[i]),
            (Dim::Known(len), Dim::Known(k), auto) => {
                let pads = if auto == "VALID" { 0 } else { pads[i] + pads[i + n] };
                Some((*len as i64 - 1) * strides[i] + (*k as i64 - 1) * dilations[i] + 1 - pads + extra[i])
            }
            _ => None,
        };
        shape.push(given.or(computed).and_then(|d| usize::try_from(d).ok()).map_or(Dim::Unknown, Dim::Known));
    }
    Some(shape)
}

/// MaxPool, AveragePool and their kin.
pub fn pool(node: &Node, x: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let x = x?;
    let kernel = node.ints("kernel_shape")?;
    let n = kernel.len();
    if x.len() != n + 2 {
        return None;
    }
    let (strides, dilations, pads) = (list(node, "strides", n, 1), list(node, "dilations", n, 1), list(node, "pads", 2 * n, 0));
    let (auto, ceil) = (node.str("auto_pad").unwrap_or("NOTSET"), node.int("ceil_mode").unwrap_or(0) != 0);
    let mut shape = x[..2].to_vec();
    for i in 0..n {
        let mut d = slide(&x[i + 2], kernel[i], strides[i], dilations[i], pads[i] + pads[i + n], auto, ceil);
        // A window that would begin in the padding behind the input is left out.
        if let (true, Dim::Known(m), Dim::Known(len)) = (ceil, &d, &x[i + 2])
            && (*m as i64 - 1) * strides[i] >= *len as i64 + pads[i]
        {
            d = Dim::Known(m - 1);
        }
        shape.push(d);
    }
    Some(shape)
}
