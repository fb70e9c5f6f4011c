//! Class labels of samples.

use super::files::{self, Array};
use super::{Dataset, From};
use crate::error::{At, Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Class labels, one for each entry of the batch of each sample of `data`, in the order of the samples. From `.npy` (integers, one axis or a second of
/// size 1), or from CSV lines `file,class` matched with the names of the data's files;
/// or a folder of folders, one a class, in which the data's files lie.
pub fn labels(path: &Path, data: &Dataset) -> Result<Vec<i64>> {
    let want: usize = data.batches().sum();
    let labels = match files::extension(path).as_str() {
        _ if path.is_dir() => folders(path, data).at(|| path.display())?,
        "npy" | "npz" => array(path)?,
        _ => csv(path, data).at(|| path.display())?,
    };
    if labels.len() != want {
        return Err(Error::usage(format!("{}: it has {} labels, the data has {want} entries; each needs one", path.display(), labels.len())));
    }
    Ok(labels)
}

fn array(path: &Path) -> Result<Vec<i64>> {
    let arrays = files::arrays(path)?;
    let fail = |why: String| Error::usage(format!("{}: {why}", path.display()));
    let mut arrays = arrays.into_values();
    let (Some(Array::Npy(a)), None) = (arrays.next(), arrays.next()) else {
        return Err(fail("labels are one array of integers".into()));
    };
    let flat = a.shape.len() == 1 || a.shape.len() == 2 && a.shape[1] == 1;
    if !flat || a.dtype.is_float() {
        return Err(fail(format!("labels are one integer a sample, not {} of shape {:?}", a.dtype, a.shape)));
    }
    a.whole().and_then(|t| t.to_i64()).at(|| path.display())
}

/// The folder that each file lies in: its number, if all are numbers, else its place among their sorted names.
fn folders(root: &Path, data: &Dataset) -> Result<Vec<i64>> {
    let From::Files { parts, .. } = &data.from else {
        return Err(Error::usage("random data has no labels"));
    };
    let class = |path: &Path| Some(path.strip_prefix(root).ok()?.parent()?.components().next()?.as_os_str().to_string_lossy().into_owned());
    let of = |p: &super::Part| class(&p.path).ok_or_else(|| Error::usage(format!("{} lies in no folder of it that could be its class", p.path.display())));
    let names = parts.iter().map(of).collect::<Result<Vec<_>>>()?;
    let numbers: Option<Vec<i64>> = names.iter().map(|n| n.parse().ok()).collect();
    // Classes without a sample count too.
    let mut all: Vec<String> =
        files::entries(root).into_iter().filter(|p| p.is_dir()).filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
    all.sort();
    let place = |n: &String| all.binary_search(n).map_or(-1, |i| i as i64);
    let each = |(i, p): (usize, &super::Part)| {
        let label = numbers.as_ref().map_or_else(|| place(&names[i]), |n| n[i]);
        std::iter::repeat_n(label, p.len() * p.batch())
    };
    Ok(parts.iter().enumerate().flat_map(each).collect())
}

fn csv(path: &Path, data: &Dataset) -> Result<Vec<i64>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::usage(format!("it cannot be read ({e}); labels are .npy, CSV lines file,class, or a folder of folders, one a class")))?;
    let From::Files { parts, .. } = &data.from else {
        return Err(Error::usage("random data has no labels"));
    };
    let mut classes = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        match line.rsplit_once(',').map(|(file, class)| (file.trim(), class.trim().parse::<i64>())) {
            Some((file, Ok(class))) => {
                classes.insert(file.to_string(), class);
            }
            // The first line may be a header.
            _ if i == 0 => {}
            _ => return Err(Error::usage(format!("line {} is not file,class: {line}", i + 1))),
        }
    }
    let mut labels = Vec::new();
    for part in parts {
        let name = part.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let class = classes.get(&name).or_else(|| classes.get(&*part.path.to_string_lossy()));
        let class = class.ok_or_else(|| Error::usage(format!("it has no class for {name}")))?;
        labels.extend(std::iter::repeat_n(*class, part.len() * part.batch()));
    }
    Ok(labels)
}
