//! The one integration binary. A test that needs the shared folder of models is `#[cfg(feature = "shared")]` and opens it with [`shared`]:
//! with the feature on and the folder missing it fails, it never skips.

mod architecture;
mod casts;
mod cli;
#[cfg(feature = "shared")]
mod corpus;
mod data;
mod day_one;
mod dependencies;
mod engine;
mod exporters;
mod foreign;
mod images;
mod learn;
mod lift;
mod micro;
mod models;
mod onnx;
mod ort;
mod python;
mod quant;
mod raw_images;
mod retarget;
mod spellings;
mod targets;
mod toy;
mod weights;

/// A file of the shared folder, whose place the environment variable REQUANT_SHARED holds.
#[cfg(feature = "shared")]
#[allow(dead_code)]
pub fn shared(file: &str) -> std::path::PathBuf {
    let root = std::env::var_os("REQUANT_SHARED").expect("REQUANT_SHARED names the shared folder when the feature `shared` is on");
    let path = std::path::Path::new(&root).join(file);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// A file of this repository.
#[allow(dead_code)]
pub fn repository(file: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
