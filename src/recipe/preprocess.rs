//! `inputs.X.preprocess`: a preset's name, a file, or keys; a Hugging Face `preprocessor_config.json` is a file too.

use super::configs;
use super::parse::parse;
use super::shape::{Shape, Tree};
use super::table::PREPROCESS;
use crate::data::{Filter, Preprocess, Resize};
use crate::error::{At, Error, Result};
use serde_json::Value;

/// What stands there, as preprocessing.
pub fn preprocess(tree: &Tree) -> Result<Preprocess> {
    let mut how = Preprocess::default();
    match tree.text() {
        Some(name) => named(&mut how, name)?,
        None => keys(&mut how, tree)?,
    }
    Ok(how)
}

fn named(how: &mut Preprocess, name: &str) -> Result<()> {
    let found = configs::preset(name, None)?;
    if name.ends_with(".json") {
        let json = serde_json::from_slice(&found.bytes).map_err(|e| Error::usage(format!("{}: {e}", found.place)))?;
        return hugging_face(how, &json).at(|| &found.place);
    }
    let tree = parse(&found.bytes, &Shape::Map(PREPROCESS), &found.place)?;
    keys(how, &tree).at(|| &found.place)
}

fn keys(how: &mut Preprocess, tree: &Tree) -> Result<()> {
    if let Some(name) = tree.get("preset").and_then(Tree::text) {
        named(how, name)?;
    }
    let pair = |t: &Tree| -> Option<[usize; 2]> {
        let of = |t: &Tree| Some(t.int()? as usize);
        match t.list() {
            [] => Some([of(t)?; 2]),
            [h, w] => Some([of(h)?, of(w)?]),
            _ => None,
        }
    };
    let two = |key: &str| match tree.get(key).map(|t| pair(t).ok_or(t)) {
        None => Ok(None),
        Some(Ok(p)) => Ok(Some(p)),
        Some(Err(t)) => Err(Error::usage(format!("preprocess.{key}: {} is neither one number nor [height, width]", t.show()))),
    };
    let numbers = |key: &str| {
        let of = |t: &Tree| t.number().map(|n| n as f32);
        tree.get(key).map(|t| if t.list().is_empty() { of(t).into_iter().collect() } else { t.list().iter().filter_map(of).collect::<Vec<f32>>() })
    };
    let text = |key: &str| tree.get(key).and_then(Tree::text);
    how.size = two("size")?.or(how.size);
    how.crop = two("crop")?.or(how.crop);
    how.mean = numbers("mean").unwrap_or(how.mean.clone());
    how.std = numbers("std").unwrap_or(how.std.clone());
    how.scale = tree.get("scale").and_then(Tree::number).map_or(how.scale, |n| n as f32);
    how.pad = tree.get("pad").and_then(Tree::int).map_or(how.pad, |n| n as u8);
    how.resize = match text("resize") {
        Some("short-side") => Resize::ShortSide,
        Some("letterbox") => Resize::Letterbox,
        Some(_) => Resize::Stretch,
        None => how.resize,
    };
    how.filter = match text("filter") {
        Some("nearest") => Filter::Nearest,
        Some("bicubic") => Filter::Bicubic,
        Some(_) => Filter::Bilinear,
        None => how.filter,
    };
    how.center = text("position").map_or(how.center, |p| p == "center");
    how.bgr = text("channels").map_or(how.bgr, |c| c == "bgr");
    how.channels_last = text("layout").map(|l| l == "nhwc").or(how.channels_last);
    if how.scale == 0.0 || how.std.contains(&0.0) {
        return Err(Error::usage("preprocess.scale and std divide: they cannot be 0"));
    }
    Ok(())
}

/// The keys of Hugging Face's image processors.
fn hugging_face(how: &mut Preprocess, json: &Value) -> Result<()> {
    let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
    let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_u64).map(|n| n as usize);
    let pair = |key: &str| -> Option<[usize; 2]> {
        let v = json.get(key)?;
        v.as_u64().map(|n| [n as usize; 2]).or_else(|| Some([number(v, "height")?, number(v, "width")?]))
    };
    if !["do_resize", "do_normalize", "do_rescale", "image_mean"].iter().any(|k| json.get(k).is_some()) {
        return Err(Error::usage("it is no preprocessor_config.json of an image model: it has neither do_resize nor do_normalize"));
    }
    if flag("do_resize") {
        let short = json.get("size").and_then(|s| number(s, "shortest_edge"));
        how.resize = if short.is_some() { Resize::ShortSide } else { Resize::Stretch };
        how.size = short.map(|n| [n; 2]).or_else(|| pair("size"));
        how.filter = match json.get("resample").and_then(Value::as_u64) {
            Some(0) => Filter::Nearest,
            None | Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            Some(other) => return Err(Error::usage(format!("resample {other} is none of 0 (nearest), 2 (bilinear) and 3 (bicubic)"))),
        };
    }
    if flag("do_center_crop") {
        how.crop = pair("crop_size");
    }
    if json.get("do_rescale").and_then(Value::as_bool).unwrap_or(true) {
        how.scale = json.get("rescale_factor").and_then(Value::as_f64).map_or(255.0, |f| (1.0 / f) as f32);
    }
    if flag("do_normalize") {
        let list = |key: &str| json.get(key).and_then(Value::as_array).map(|l| l.iter().filter_map(Value::as_f64).map(|n| n as f32).collect());
        how.mean = list("image_mean").unwrap_or(how.mean.clone());
        how.std = list("image_std").unwrap_or(how.std.clone());
    }
    Ok(())
}

/// The recipe's word.
pub fn resize_word(how: Resize) -> &'static str {
    match how {
        Resize::ShortSide => "short-side",
        Resize::Stretch => "stretch",
        Resize::Letterbox => "letterbox",
    }
}

/// As YAML on one line, which reads back as the same.
pub fn show(how: &Preprocess) -> String {
    let list = |l: &[f32]| format!("[{}]", l.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", "));
    let mut keys = vec![
        format!("resize: {}", resize_word(how.resize)),
        format!(
            "filter: {}",
            match how.filter {
                Filter::Nearest => "nearest",
                Filter::Bilinear => "bilinear",
                Filter::Bicubic => "bicubic",
            }
        ),
    ];
    keys.extend(how.size.map(|s| format!("size: {s:?}")));
    keys.extend(how.crop.map(|s| format!("crop: {s:?}")));
    if how.resize == Resize::Letterbox {
        keys.push(format!("pad: {}, position: {}", how.pad, if how.center { "center" } else { "corner" }));
    }
    keys.push(format!("scale: {:?}, mean: {}, std: {}, channels: {}", how.scale, list(&how.mean), list(&how.std), if how.bgr { "bgr" } else { "rgb" }));
    keys.extend(how.channels_last.map(|l| format!("layout: {}", if l { "nhwc" } else { "nchw" })));
    format!("{{ {} }}", keys.join(", "))
}
