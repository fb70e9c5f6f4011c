//! Samples as NumPy and onnx write them.

use requant::data::{DataSettings, Dataset, InputInfo};
use requant::graph::Dim;
use requant::tensor::DType;

/// Python writes each file, and says what is in it.
#[test]
fn files_of_numpy_and_onnx_are_read_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let said: serde_json::Value = serde_json::from_str(&crate::python::run("make_data.py", &[dir.path().to_str().unwrap()])).unwrap();
    let cases = said.as_object().unwrap();
    assert!(cases.len() >= 8);
    for (file, said) in cases {
        let dtype = DType::of_name(said["dtype"].as_str().unwrap()).unwrap();
        let input = InputInfo { name: "x".into(), dtype, shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(3), Dim::Known(2)]) };
        let data = Dataset::open(dir.path().join(file).to_str().unwrap(), &[input], &DataSettings::default()).unwrap();
        assert_eq!(data.len() as u64, said["samples"].as_u64().unwrap(), "{file}");
        let values: Vec<f64> =
            (0..data.len()).flat_map(|i| data.sample(i).unwrap()["x"].to_f32().unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<_>>()).collect();
        let wanted: Vec<f64> = said["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(values, wanted, "{file}");
    }
}
