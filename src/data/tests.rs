//! What data is taken, what is refused, and in which words.

use super::*;
use std::io::Write;
use std::sync::Arc;

/// A `.npy` of these bytes.
pub fn npy(descr: &str, fortran: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let order = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({dims}), }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.bytes());
    out.extend(data);
    out
}

fn f32s(shape: &[usize]) -> Vec<u8> {
    let n: usize = shape.iter().product();
    npy("<f4", false, shape, &(0..n).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<_>>())
}

fn npz(arrays: &[(&str, Vec<u8>)], compressed: bool) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let method = if compressed { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn input(name: &str, dtype: DType, shape: &[Option<usize>]) -> InputInfo {
    let dim = |d: &Option<usize>| d.map_or(Dim::Symbol("N".into()), Dim::Known);
    InputInfo { name: name.into(), dtype, shape: Some(shape.iter().map(dim).collect()) }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, Vec<u8>)]) -> Folder {
        let dir = Folder(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            let path = dir.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn open(&self, file: &str, inputs: &[InputInfo]) -> Result<Dataset> {
        Dataset::open(self.0.path().join(file).to_str().unwrap(), inputs, &DataSettings::default())
    }

    fn refused(&self, file: &str, inputs: &[InputInfo], words: &[&str]) {
        let e = self.open(file, inputs).and_then(|d| (0..d.len()).try_for_each(|i| d.sample(i).map(drop))).expect_err(file);
        assert_eq!(e.exit_code(), 2, "{e}");
        words.iter().for_each(|w| assert!(e.to_string().contains(w), "{w:?} is not in: {e}"));
    }
}

const X: &str = "x";

fn x23(batch: Option<usize>) -> Vec<InputInfo> {
    vec![input(X, DType::F32, &[batch, Some(2), Some(3)])]
}

#[test]
fn arrays_become_samples_by_their_rank() {
    let folder = Folder::new(&[
        ("rows.npz", npz(&[("x", f32s(&[4, 2, 3]))], false)),
        ("packed.npz", npz(&[("arr_0", f32s(&[4, 2, 3]))], true)),
        ("whole.npy", f32s(&[5, 2, 2, 3])),
    ]);
    for file in ["rows.npz", "packed.npz"] {
        let d = folder.open(file, &x23(None)).unwrap();
        assert_eq!(d.len(), 4);
        let t = &d.sample(2).unwrap()[X];
        assert_eq!((t.shape(), t.to_f32().unwrap()[0]), (&[1, 2, 3][..], 12.0), "{file}");
    }
    let d = folder.open("rows.npz", &x23(Some(2))).unwrap();
    assert_eq!((d.len(), d.batches().collect::<Vec<_>>()), (2, vec![2, 2]));
    assert_eq!(d.sample(1).unwrap()[X].to_f32().unwrap()[0], 12.0);
    let d = folder.open("whole.npy", &x23(Some(2))).unwrap();
    assert_eq!(d.len(), 5);
    assert_eq!(d.sample(4).unwrap()[X].shape(), [2, 2, 3]);
    assert!(d.name(4).ends_with("whole.npy[4]"));
    // What does not fill a batch is left out, and that is said.
    let d = folder.open("rows.npz", &x23(Some(3))).unwrap();
    assert_eq!(d.len(), 1);
    assert!(d.remarks()[0].contains("left out"), "{:?}", d.remarks());
}

#[test]
fn a_folder_is_its_files_in_order() {
    let folder = Folder::new(&[("b.npy", f32s(&[1, 5])), ("a.npz", npz(&[("x", f32s(&[2, 3]))], false)), ("notes.txt", b"hello".to_vec())]);
    let inputs = [InputInfo { name: X.into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("B".into()), Dim::Symbol("T".into())]) }];
    let d = folder.open("", &inputs).unwrap();
    assert_eq!(d.len(), 3);
    let shapes: Vec<_> = (0..3).map(|i| d.sample(i).unwrap()[X].shape().to_vec()).collect();
    assert_eq!(shapes, [[1, 3], [1, 3], [1, 5]]);
    assert!(d.remarks().iter().any(|r| r.contains("1 other file")), "{:?}", d.remarks());
    assert_eq!(d.sha256().unwrap(), folder.open("", &inputs).unwrap().sha256().unwrap());
}

#[test]
fn element_types_orders_and_ends() {
    let bytes = |v: &[i32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let big = |v: &[i32]| v.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<_>>();
    let c = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    // The same numbers with the first index fastest: shape [2, 2, 3].
    let f: Vec<i32> = (0..12).map(|k| (k % 2) * 6 + (k / 2 % 2) * 3 + k / 4).collect();
    let folder = Folder::new(&[
        ("c.npy", npy("<i4", false, &[2, 2, 3], &bytes(&c))),
        ("f.npy", npy("<i4", true, &[2, 2, 3], &bytes(&f))),
        ("b.npy", npy(">i4", false, &[2, 2, 3], &big(&c))),
    ]);
    let inputs = [input(X, DType::I32, &[None, Some(2), Some(3)])];
    for file in ["c.npy", "f.npy", "b.npy"] {
        let d = folder.open(file, &inputs).unwrap();
        let all: Vec<i64> = (0..2).flat_map(|i| d.sample(i).unwrap()[X].to_i64().unwrap()).collect();
        assert_eq!(all, (0..12).collect::<Vec<i64>>(), "{file}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let nan = |v: f32| npy("<f4", false, &[2, 2, 3], &(0..12).flat_map(|i| if i == 7 { v } else { 0.0 }.to_le_bytes()).collect::<Vec<_>>());
    let whole = npz(&[("x", f32s(&[4, 2, 3]))], false);
    let folder = Folder::new(&[
        ("name.npz", npz(&[("a", f32s(&[1, 2, 3])), ("b", f32s(&[1, 2, 3]))], false)),
        ("rank.npy", f32s(&[4, 3])),
        ("shape.npy", f32s(&[4, 2, 4])),
        ("type.npy", npy("<f8", false, &[1, 2, 3], &[0; 48])),
        ("object.npy", npy("|O", false, &[1], &[0; 8])),
        ("nan.npy", nan(f32::NAN)),
        ("inf.npy", nan(f32::NEG_INFINITY)),
        ("none.npy", f32s(&[0, 2, 3])),
        ("short.npy", f32s(&[4, 2, 3])[..100].to_vec()),
        ("text.npy", b"hello, I am text".to_vec()),
        ("tiny.npy", b"\x93N".to_vec()),
        ("cut.npz", whole[..whole.len() / 2].to_vec()),
        ("image.gif", vec![1]),
        ("pictures/a.gif", vec![1]),
        ("counts.npz", npz(&[("x", f32s(&[4, 2, 3])), ("y", f32s(&[3, 2]))], false)),
    ]);
    std::fs::create_dir(folder.0.path().join("empty")).unwrap();
    let x = x23(None);
    folder.refused("name.npz", &x, &["name.npz", "input x", "a, b", "inputs.x.from"]);
    folder.refused("rank.npy", &x, &["rank.npy", "input x", "[4, 3]", "[N, 2, 3]"]);
    folder.refused("shape.npy", &x, &["shape.npy", "input x", "[4, 2, 4]"]);
    folder.refused("type.npy", &x, &["type.npy", "float64", "float32", ".astype(np.float32)"]);
    folder.refused("object.npy", &x, &["object.npy", "|O"]);
    folder.refused("nan.npy", &x, &["nan.npy[1]", "input x", "NaN"]);
    folder.refused("inf.npy", &x, &["inf.npy[1]", "input x", "-inf"]);
    folder.refused("none.npy", &x, &["none.npy", "no sample"]);
    folder.refused("short.npy", &x, &["short.npy", "cut short"]);
    folder.refused("text.npy", &x, &["text.npy", "not a NumPy array"]);
    folder.refused("tiny.npy", &x, &["tiny.npy"]);
    folder.refused("cut.npz", &x, &["cut.npz", "not a whole .npz"]);
    folder.refused("image.gif", &x, &["image.gif", "--data takes"]);
    folder.refused("pictures", &x, &["pictures", "a.gif", "--data takes"]);
    folder.refused("empty", &x, &["empty folder"]);
    folder.refused("gone.npz", &x, &["gone.npz", "does not exist"]);
    let both = [x[0].clone(), input("y", DType::F32, &[None, Some(2)])];
    folder.refused("counts.npz", &both, &["counts.npz", "3 samples", "4"]);
    folder.refused("shape.npy", &x23(Some(9)), &["shape.npy"]);
}

#[test]
fn inputs_that_data_lacks_are_filled_by_name_or_by_the_recipe() {
    let ids = npy("<i8", false, &[2, 3], &(0..6i64).flat_map(i64::to_le_bytes).collect::<Vec<_>>());
    let folder = Folder::new(&[("ids.npz", npz(&[("input_ids", ids)], false))]);
    let two = |name: &str| InputInfo { name: name.into(), dtype: DType::I64, shape: Some(vec![Dim::Symbol("B".into()), Dim::Symbol("T".into())]) };
    let inputs = [two("input_ids"), two("attention_mask"), two("position_ids"), two("token_type_ids")];
    let d = folder.open("ids.npz", &inputs).unwrap();
    let s = d.sample(1).unwrap();
    assert_eq!(s["input_ids"].to_i64().unwrap(), [3, 4, 5]);
    assert_eq!(s["attention_mask"].to_i64().unwrap(), [1, 1, 1]);
    assert_eq!(s["position_ids"].to_i64().unwrap(), [0, 1, 2]);
    assert_eq!(s["token_type_ids"].to_i64().unwrap(), [0, 0, 0]);
    assert_eq!(d.remarks().len(), 3);
    folder.refused("ids.npz", &[two("input_ids"), two("labels")], &["no array for input labels"]);
    let settings = |s: InputSettings| DataSettings { inputs: BTreeMap::from([("state".to_string(), s)]), seed: 0 };
    let path = folder.0.path().join("ids.npz");
    let open = |s| Dataset::open(path.to_str().unwrap(), &[two("input_ids"), two("state")], &settings(s));
    let filled = open(InputSettings { fill: Some(Fill::Value(7.0)), ..InputSettings::default() }).unwrap();
    assert_eq!(filled.sample(0).unwrap()["state"].to_i64().unwrap(), [7, 7, 7]);
    let e = open(InputSettings { from: Some("past".into()), ..InputSettings::default() }).unwrap_err().to_string();
    assert!(e.contains("inputs.state.from names array past"), "{e}");
}

#[test]
fn random_samples_depend_on_the_seed_alone() {
    let inputs = [input(X, DType::F32, &[None, Some(400)]), input("ids", DType::I64, &[None, None])];
    let open = |seed| Dataset::open("random:3", &inputs, &DataSettings { seed, ..DataSettings::default() }).unwrap();
    let (a, b, c) = (open(1), open(1), open(2));
    assert!(a.is_random() && a.len() == 3);
    assert!(a.sample(2).unwrap()[X] == b.sample(2).unwrap()[X]);
    assert!(a.sample(2).unwrap()[X] != c.sample(2).unwrap()[X]);
    assert!(a.sample(1).unwrap()[X] != a.sample(2).unwrap()[X]);
    let s = a.sample(0).unwrap();
    let x = s[X].to_f32().unwrap();
    let mean = x.iter().sum::<f32>() / 400.0;
    let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 400.0;
    assert!(mean.abs() < 0.2 && (0.8..1.25).contains(&var), "{mean} {var}");
    assert_eq!(s["ids"].shape(), [1, 16]);
    assert!(Dataset::open("random:0", &inputs, &DataSettings::default()).unwrap_err().to_string().contains("random:0"));
}

#[test]
fn samples_are_split_so_that_judges_differ() {
    let s = split(100, 64, None, Some(0));
    assert_eq!((s.calibration.len(), s.validation.len()), (64, 36));
    assert!(s.calibration.iter().all(|i| !s.validation.contains(i)) && s.remarks.is_empty());
    assert_ne!(s.calibration, (0..64).collect::<Vec<_>>(), "shuffled");
    assert_eq!(s, split(100, 64, None, Some(0)));
    assert_eq!(split(100, 64, Some(5), None).validation, [64, 65, 66, 67, 68]);
    let all = split(8, 64, None, None);
    assert_eq!((all.calibration.len(), all.validation.len(), all.remarks.len()), (8, 8, 2));
    assert!(split(8, 64, Some(0), None).validation.is_empty());
}

#[test]
fn labels_are_one_an_entry() {
    let classes = |n: usize| npy("<i8", false, &[n], &(0..n as i64).flat_map(i64::to_le_bytes).collect::<Vec<_>>());
    let folder = Folder::new(&[
        ("x.npz", npz(&[("x", f32s(&[4, 2, 3]))], false)),
        ("four.npy", classes(4)),
        ("five.npy", classes(5)),
        ("float.npy", f32s(&[4])),
        ("set/a.npy", f32s(&[1, 2, 3])),
        ("set/b.npy", f32s(&[2, 2, 3])),
        ("ab.csv", b"file,class\nb.npy,7\na.npy,3\n".to_vec()),
        ("bad.csv", b"file,class\nb.npy,seven\n".to_vec()),
    ]);
    let d = folder.open("x.npz", &x23(Some(2))).unwrap();
    let of = |file: &str, d: &Dataset| labels(&folder.0.path().join(file), d);
    assert_eq!(of("four.npy", &d).unwrap(), [0, 1, 2, 3]);
    let e = of("five.npy", &d).unwrap_err().to_string();
    assert!(e.contains("5 labels") && e.contains("4 entries"), "{e}");
    assert!(of("float.npy", &d).unwrap_err().to_string().contains("integer"));
    let set = folder.open("set", &x23(None)).unwrap();
    assert_eq!(of("ab.csv", &set).unwrap(), [3, 7, 7]);
    assert!(of("bad.csv", &set).unwrap_err().to_string().contains("line 2"));
}

#[test]
fn threads_may_read_at_once() {
    let folder = Folder::new(&[("x.npy", f32s(&[64, 2, 3]))]);
    let d = Arc::new(folder.open("x.npy", &x23(None)).unwrap());
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..64).for_each(|i| assert_eq!(d.sample(i).unwrap()[X].to_f32().unwrap()[0], 6.0 * i as f32)));
        }
    });
}
