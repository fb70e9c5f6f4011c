//! Model files that are none, or not whole.

use super::program::{Folder, MODEL};
use requant::onnx::{self, ReadOptions, WriteOptions};

/// Every command that reads a model refuses the file so.
fn refuses(folder: &Folder, file: &str, words: &[&str]) {
    folder.refuses(&["inspect", file], 2, words);
}

#[test]
fn what_is_not_a_model_is_refused() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.path(MODEL)).unwrap();
    folder.write("text.onnx", "This is not a model.\nIt is a text.\n");
    folder.write("empty.onnx", "");
    folder.write("truncated.onnx", &whole[..whole.len() - 1000]);
    folder.write("head.onnx", &whole[..20]);
    folder.write("noise.onnx", whole.iter().map(|b| b.wrapping_mul(31) ^ 0x5a).collect::<Vec<_>>());
    folder.write("archive.onnx", b"PK\x03\x04 an archive, perhaps");
    std::fs::create_dir(folder.path("folder.onnx")).unwrap();
    refuses(&folder, "text.onnx", &["text.onnx", "not an ONNX model"]);
    refuses(&folder, "empty.onnx", &["empty.onnx", "empty"]);
    refuses(&folder, "truncated.onnx", &["truncated.onnx", "bytes"]);
    refuses(&folder, "head.onnx", &["head.onnx"]);
    refuses(&folder, "noise.onnx", &["noise.onnx", "not an ONNX model"]);
    refuses(&folder, "archive.onnx", &["archive.onnx", "not an ONNX model"]);
    refuses(&folder, "folder.onnx", &["folder.onnx", "folder"]);
    refuses(&folder, "nowhere.onnx", &["nowhere.onnx", "does not exist"]);
}

#[test]
fn every_truncation_of_a_model_is_refused() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.path(MODEL)).unwrap();
    for n in (1..24).map(|i| i * whole.len() / 24) {
        folder.write("cut.onnx", &whole[..n]);
        refuses(&folder, "cut.onnx", &["cut.onnx"]);
    }
}

#[test]
fn external_data_that_is_missing_or_short_is_named() {
    let folder = Folder::new();
    let model = onnx::read(&folder.path(MODEL), &ReadOptions::default()).unwrap();
    onnx::write(&model, &folder.path("big.onnx"), &WriteOptions { external: Some(true) }).unwrap();
    drop(model);
    folder.run(&["inspect", "big.onnx"]).ok();
    let data = std::fs::read(folder.path("big.onnx.data")).unwrap();
    folder.write("big.onnx.data", &data[..data.len() / 2]);
    refuses(&folder, "big.onnx", &["big.onnx", "big.onnx.data"]);
    std::fs::remove_file(folder.path("big.onnx.data")).unwrap();
    refuses(&folder, "big.onnx", &["big.onnx", "big.onnx.data"]);
}
