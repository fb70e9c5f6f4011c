//! Images as samples, against what Pillow makes of the same files.

use crate::python;
use requant::data::{DataSettings, Dataset, Filter, InputInfo, InputSettings, Preprocess, Resize};
use requant::graph::Dim;
use requant::tensor::DType;
use std::collections::BTreeMap;
use std::path::Path;

fn input(name: &str, shape: [usize; 4]) -> InputInfo {
    InputInfo { name: name.into(), dtype: DType::F32, shape: Some(shape.map(Dim::Known).to_vec()) }
}

fn settings(name: &str, preprocess: Preprocess) -> DataSettings {
    let inputs = BTreeMap::from([(name.to_string(), InputSettings { preprocess: Some(preprocess), ..InputSettings::default() })]);
    DataSettings { inputs, ..DataSettings::default() }
}

/// The samples of `folder`'s images, with their files' names.
fn samples(folder: &Path, shape: [usize; 4], how: Preprocess) -> Vec<(String, Vec<f32>)> {
    let data = Dataset::open(folder.to_str().unwrap(), &[input("x", shape)], &settings("x", how)).unwrap();
    let name = |i: usize| Path::new(data.name(i).trim_end_matches("[0]")).file_name().unwrap().to_string_lossy().into_owned();
    (0..data.len()).map(|i| (name(i), data.sample(i).unwrap()["x"].to_f32().unwrap().into_owned())).collect()
}

#[test]
fn pixels_are_those_of_pillow() {
    let here = tempfile::tempdir().unwrap();
    let (images, wanted) = (here.path().join("images"), here.path().join("wanted"));
    std::fs::create_dir(&images).unwrap();
    python::run("images.py", &[images.to_str().unwrap()]);
    // The answers go elsewhere: arrays beside images would be the samples.
    std::fs::create_dir(&wanted).unwrap();
    for entry in std::fs::read_dir(&images).unwrap().map(|e| e.unwrap()).filter(|e| e.file_name().to_string_lossy().ends_with(".npy")) {
        std::fs::rename(entry.path(), wanted.join(entry.file_name())).unwrap();
    }
    let plain = Preprocess::default;
    let cases = [
        (
            "short",
            [1, 3, 56, 56],
            Preprocess { resize: Resize::ShortSide, filter: Filter::Bicubic, size: Some([64; 2]), mean: vec![127.0], std: vec![128.0], ..plain() },
        ),
        ("larger", [1, 3, 190, 190], Preprocess { resize: Resize::ShortSide, size: Some([200; 2]), ..plain() }),
        ("stretch", [1, 3, 76, 48], Preprocess { scale: 255.0, bgr: true, ..plain() }),
        ("nearest", [1, 3, 33, 50], Preprocess { filter: Filter::Nearest, ..plain() }),
        ("letterbox", [1, 3, 64, 64], Preprocess { resize: Resize::Letterbox, scale: 255.0, ..plain() }),
        ("corner", [1, 3, 90, 90], Preprocess { resize: Resize::Letterbox, filter: Filter::Bicubic, center: false, bgr: true, ..plain() }),
        ("luma", [1, 1, 32, 32], plain()),
    ];
    let mut compared = 0;
    for (case, shape, how) in cases {
        for (file, got) in samples(&images, shape, how) {
            let path = wanted.join(format!("{case}.{file}.npy"));
            let want = Dataset::open(path.to_str().unwrap(), &[input("x", shape)], &DataSettings::default()).unwrap().sample(0).unwrap()["x"].clone();
            let far = want.to_f32().unwrap().iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(far < 1e-6, "{case} of {file} differs by {far}");
            compared += 1;
        }
    }
    assert_eq!(compared, 7 * 8);
}

#[test]
fn images_without_preprocessing_or_of_another_size_are_refused() {
    let here = tempfile::tempdir().unwrap();
    python::run("images.py", &[here.path().to_str().unwrap()]);
    for e in std::fs::read_dir(here.path()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "npy")) {
        std::fs::remove_file(e).unwrap();
    }
    let open = |shape, settings: &DataSettings| Dataset::open(here.path().to_str().unwrap(), &[input("pixels", shape)], settings);
    let refused = |shape, how: Preprocess| open(shape, &settings("pixels", how)).unwrap_err().to_string();
    let e = open([1, 3, 8, 8], &DataSettings::default()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("inputs.pixels.preprocess") && e.to_string().contains("imagenet"), "{e}");
    let sized = Preprocess { size: Some([9; 2]), ..Preprocess::default() };
    assert!(refused([1, 3, 8, 8], sized).contains("makes images of [9, 9], the model wants [1, 3, 8, 8]"));
    assert!(refused([1, 4, 8, 8], Preprocess::default()).contains("3 channels or 1"));
    let e = refused([1, 3, 8, 8], Preprocess { mean: vec![0.0; 2], ..Preprocess::default() });
    assert!(e.contains("preprocess.mean has 2 numbers"), "{e}");
    let cropped = Preprocess { resize: Resize::ShortSide, size: Some([6; 2]), ..Preprocess::default() };
    assert!(refused([1, 3, 8, 8], cropped).contains("is larger than"));
    std::fs::write(here.path().join("broken.jpg"), [0xff, 0xd8, 1, 2]).unwrap();
    let data = open([1, 3, 8, 8], &settings("pixels", Preprocess::default())).unwrap();
    let broken = (0..data.len()).find(|i| data.name(*i).contains("broken")).unwrap();
    let e = data.sample(broken).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("broken.jpg is no image"), "{e}");
}

#[test]
fn lists_of_images_and_raw_files_and_labels_by_folder() {
    let here = tempfile::tempdir().unwrap();
    let root = here.path();
    for (class, pixel) in [("cat", 10u8), ("dog", 200)] {
        std::fs::create_dir(root.join(class)).unwrap();
        // A bitmap of one pixel.
        let mut bmp = vec![b'B', b'M', 58, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 24, 0];
        bmp.extend([0u8; 24]);
        bmp.extend([pixel, pixel, pixel, 0]);
        std::fs::write(root.join(class).join("1.bmp"), bmp).unwrap();
    }
    let x = input("x", [1, 3, 1, 1]);
    let settings = settings("x", Preprocess::default());
    let data = Dataset::open(root.to_str().unwrap(), std::slice::from_ref(&x), &settings).unwrap();
    assert_eq!(requant::data::labels(root, &data).unwrap(), [0, 1]);
    assert_eq!(data.sample(1).unwrap()["x"].to_f32().unwrap()[..], [200.0; 3]);
    let list = root.join("few.txt");
    std::fs::write(&list, "# one of them\ndog/1.bmp\n").unwrap();
    assert_eq!(Dataset::open(list.to_str().unwrap(), std::slice::from_ref(&x), &settings).unwrap().len(), 1);
    std::fs::write(&list, "dog/2.bmp\n").unwrap();
    assert!(Dataset::open(list.to_str().unwrap(), std::slice::from_ref(&x), &settings).unwrap_err().to_string().contains("2.bmp does not exist"));

    let raw = root.join("raw");
    std::fs::create_dir(&raw).unwrap();
    std::fs::write(raw.join("a.raw"), [1f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    std::fs::write(raw.join("short.raw"), [0u8; 4]).unwrap();
    let open = |text: &str| {
        std::fs::write(raw.join("input_list.txt"), text).unwrap();
        Dataset::open(raw.to_str().unwrap(), std::slice::from_ref(&x), &DataSettings::default())
    };
    assert_eq!(open("x:=a.raw\na.raw\n").unwrap().sample(1).unwrap()["x"].to_f32().unwrap()[..], [1.0, 2.0, 3.0]);
    for (text, words) in [("x:=short.raw", "has 4 bytes"), ("y:=a.raw", "does not have (x)"), ("x:=b.raw", "cannot be read"), ("# none", "lists no file")] {
        let e = open(text).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(words), "{e}");
    }
}
