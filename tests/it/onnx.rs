//! Reading and writing model files: nothing is lost, nothing large is held.

use requant::graph::{Model, Node, Op, Storage};
use requant::onnx::{ReadOptions, WriteOptions, encode, read, write};
use requant::tensor::{DType, Tensor};
use std::fs;
use std::path::{Path, PathBuf};

const EXTERNAL: WriteOptions = WriteOptions { external: Some(true) };

/// Every .onnx file below a folder, sorted.
fn models(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => open.push(path),
                Some(e) if e == "onnx" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Asserts that a file comes back byte for byte, and with the same content through a data file.
fn assert_comes_back(path: &Path) {
    let model = read(path, &ReadOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let inline = dir.path().join("inline.onnx");
    write(&model, &inline, &WriteOptions::default()).unwrap();
    assert!(fs::read(path).unwrap() == fs::read(&inline).unwrap(), "{} comes back with other bytes", path.display());
    let external = dir.path().join("external.onnx");
    write(&model, &external, &EXTERNAL).unwrap();
    assert_same(path, &external);
    // And back from the data file: of tensors that were inline only their place has changed.
    let again = dir.path().join("again.onnx");
    write(&read(&external, &ReadOptions::default()).unwrap(), &again, &WriteOptions { external: Some(false) }).unwrap();
    assert_same(path, &again);
}

/// Asserts that onnx reads the same from both files.
fn assert_same(a: &Path, b: &Path) {
    let answer = crate::python::run("same_model.py", &[a.to_str().unwrap(), b.to_str().unwrap()]);
    assert_eq!(answer.trim(), "same", "{} and {}", a.display(), b.display());
}

/// A model with a constant of every element type in every storage that can hold it.
fn of_every_type(storage: Storage) -> Model {
    let mut m = Model { ir_version: 14, opsets: vec![(String::new(), 28)], ..Model::default() };
    for dtype in DType::all() {
        let shape = vec![3, 1001];
        let tensor = match dtype {
            DType::Str => Tensor::of_strings(shape, (0..3003).map(|i| format!("text {i}").into()).collect()),
            DType::Bool => Tensor::new(dtype, shape, (0..3003).map(|i| (i % 3 == 0) as u8).collect::<Vec<_>>().into()),
            _ => {
                let mut bytes: Vec<u8> = (0..dtype.packed_len(3003).unwrap()).map(|i| (i * 37 % 127) as u8).collect();
                // Bits behind the last element are zero.
                let used = 3003 * dtype.bits() % 8;
                if used != 0 {
                    *bytes.last_mut().unwrap() &= (1 << used) - 1;
                }
                Tensor::new(dtype, shape, bytes.into())
            }
        };
        let value = m.graph.add_constant(dtype.name(), tensor.unwrap());
        m.graph.value_mut(value).constant.as_mut().unwrap().storage = storage;
        let out = m.graph.add_value(&format!("{dtype}_out"));
        m.graph.add_node(Node::new(Op::Identity, dtype.name()), &[Some(value)], &[Some(out)]);
    }
    m
}

#[test]
fn models_of_the_repository_come_back() {
    models(&crate::repository("models")).iter().for_each(|path| assert_comes_back(path));
}

#[test]
fn every_element_type_comes_back_from_every_storage() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw.onnx");
    write(&of_every_type(Storage::Raw), &raw, &WriteOptions::default()).unwrap();
    for (storage, name) in [(Storage::Raw, "raw"), (Storage::Typed, "typed"), (Storage::External, "external")] {
        let path = dir.path().join(format!("{name}.onnx"));
        let written = of_every_type(storage);
        write(&written, &path, &WriteOptions::default()).unwrap();
        let model = read(&path, &ReadOptions::default()).unwrap();
        assert_eq!(encode(&model).unwrap(), encode(&written).unwrap(), "{name}");
        assert_same(&raw, &path);
    }
    assert!(dir.path().join("external.onnx.data").exists());
}

#[cfg(feature = "shared")]
#[test]
fn shared_models_come_back() {
    let all = models(&crate::shared("models"));
    assert!(all.len() >= 15);
    all.iter().for_each(|path| assert_comes_back(path));
}

#[cfg(feature = "shared")]
#[test]
fn the_corpus_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let archive = crate::shared("corpus/onnx-single-ops.tar.xz");
    assert!(std::process::Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(dir.path()).status().unwrap().success());
    let all = models(dir.path());
    assert!(all.len() >= 1500);
    let (mut refused, mut other) = (Vec::new(), Vec::new());
    for path in &all {
        let name = path.file_name().unwrap().to_str().unwrap().rsplit("__").next().unwrap().to_string();
        match read(path, &ReadOptions::default()) {
            Ok(model) if encode(&model).unwrap() == fs::read(path).unwrap() => {}
            Ok(_) => other.push(name),
            Err(e) => {
                assert!(e.to_string().contains("does not exist in"), "{e}");
                refused.push(name);
            }
        }
    }
    // Their data files are not in the archive; and nodes out of order are put in order.
    refused.sort();
    assert_eq!(refused, ["external_data.onnx", "external_data_offset.onnx", "mixed_data.onnx", "multi_external_files.onnx"]);
    assert_eq!(other, ["non_topological_order.onnx"]);
}

/// Bounds on time and memory, each measured in a process of its own: this test binary, run again.
#[cfg(target_os = "linux")]
mod large {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// KiB of anonymous memory of this process.
    fn anonymous() -> usize {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Runs `work` and prints its seconds and its highest anonymous memory in MB, above what there was before.
    fn measure(work: impl FnOnce()) {
        static PEAK: AtomicUsize = AtomicUsize::new(0);
        let before = anonymous();
        // Ends with the process, also if the work fails.
        std::thread::spawn(|| {
            loop {
                PEAK.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let start = Instant::now();
        work();
        let seconds = start.elapsed().as_secs_f64();
        let peak = PEAK.fetch_max(anonymous(), Ordering::Relaxed).max(anonymous());
        println!("measured {seconds} {}", peak.saturating_sub(before) / 1000);
    }

    /// What the other process does; nothing in an ordinary run of the tests.
    #[test]
    fn child() {
        let Ok(work) = std::env::var("REQUANT_TEST_CHILD") else { return };
        let (work, path) = work.split_once(' ').unwrap();
        let path = Path::new(path);
        measure(|| {
            let model = read(path, &ReadOptions::default()).unwrap();
            match work {
                "inline" => write(&model, &path.with_file_name("inline.onnx"), &WriteOptions { external: Some(false) }).unwrap(),
                "external" => write(&model, &path.with_file_name("external.onnx"), &EXTERNAL).unwrap(),
                "copy" => write(&model, &path.with_file_name("copy.onnx"), &WriteOptions::default()).unwrap(),
                _ => assert_eq!(model.graph.nodes().count(), 24),
            }
        });
    }

    /// Seconds and MB of anonymous memory of `work` on a model.
    fn in_child(work: &str, path: &Path) -> (f64, usize) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "onnx::large::child", "--nocapture"])
            .env("REQUANT_TEST_CHILD", format!("{work} {}", path.display()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line =
            text.lines().find_map(|l| l.split_once("measured ").map(|m| m.1)).unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap().parse::<f64>().unwrap();
        (next(), next() as usize)
    }

    fn varint(mut n: usize, out: &mut Vec<u8>) {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    }

    /// The head of a length-delimited field.
    fn field(number: usize, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        varint(number << 3 | 2, &mut out);
        varint(len, &mut out);
        out
    }

    /// A file with 24 MatMuls and inline weights of `side` × `side` float32 zeros, which are holes: it takes no room on the disk.
    fn sparse_model(path: &Path, side: usize) {
        let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() };
        let g = &mut m.graph;
        let mut x = g.add_value("x");
        g.inputs.push(x);
        for i in 0..24 {
            let (w, y) = (g.add_value(&format!("w{i}")), g.add_value(&format!("y{i}")));
            g.add_node(Node::new(Op::MatMul, format!("n{i}")), &[Some(x), Some(w)], &[Some(y)]);
            x = y;
        }
        g.outputs.push(x);
        // A message that follows another one is merged into it: the weights come as a second piece of the graph.
        let raw = side * side * 4;
        let tensors = Vec::from_iter((0..24).map(|i| {
            let mut head = Vec::new();
            for _ in 0..2 {
                head.push(1 << 3);
                varint(side, &mut head);
            }
            head.extend([2 << 3, 1]);
            let name = format!("w{i}");
            head.extend([field(8, name.len()), name.into_bytes(), field(9, raw)].concat());
            [field(5, head.len() + raw), head].concat()
        }));
        let mut file = fs::File::create(path).unwrap();
        file.write_all(&encode(&m).unwrap()).unwrap();
        file.write_all(&field(7, tensors.iter().map(|t| t.len() + raw).sum())).unwrap();
        for head in tensors {
            file.write_all(&head).unwrap();
            let end = file.seek(SeekFrom::Current(raw as i64)).unwrap();
            file.set_len(end).unwrap();
        }
    }

    #[test]
    fn a_large_model_is_read_at_once_and_without_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        sparse_model(&path, 4096);
        assert!(fs::metadata(&path).unwrap().len() > 1_600_000_000);
        let (seconds, megabytes) = in_child("read", &path);
        assert!(seconds < 0.3 && megabytes < 60, "{seconds} s, {megabytes} MB");
    }

    #[test]
    fn copies_hold_no_tensor_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        sparse_model(&path, 1536);
        for work in ["inline", "external", "copy"] {
            let (_, megabytes) = in_child(work, &path);
            assert!(megabytes < 30, "{work}: {megabytes} MB");
        }
        assert!(fs::metadata(dir.path().join("external.onnx.data")).unwrap().len() > 200_000_000);
        assert_eq!(read(&dir.path().join("inline.onnx"), &ReadOptions::default()).unwrap(), read(&path, &ReadOptions::default()).unwrap());
    }

    #[test]
    fn above_the_limit_of_protobuf_tensors_go_to_a_data_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        sparse_model(&path, 4608);
        assert!(fs::metadata(&path).unwrap().len() > 2_000_000_000);
        let model = read(&path, &ReadOptions::default()).unwrap();
        let out = dir.path().join("none.onnx");
        let e = write(&model, &out, &WriteOptions { external: Some(false) }).unwrap_err();
        assert!(e.to_string().contains("which protobuf does not read"), "{e}");
        assert!(!out.exists());
    }
}
