//! Forms that exporters write and small test models seldom have: `tests/python/exporters.py`.

use requant::pass::Silent;
use requant::recipe::{Request, Sources, convert};
use std::collections::BTreeMap;

#[test]
fn what_exporters_write_is_converted_loads_and_computes_the_same() {
    // One measures wider activations in every model.
    for (recipe, set) in [("int8", None), ("int8-fast", None), ("int8", Some("widen.loss=1e-12")), ("xint8", None)] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        crate::python::run("exporters.py", &["make", folder]);
        let mut models: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().unwrap() == "onnx").collect();
        models.sort();
        for model in &models {
            let sources = Sources { recipe: Some(recipe.into()), set: set.map(String::from).into_iter().collect(), ..Sources::default() };
            let (data, output) = (Some(model.with_extension("npz").display().to_string()), Some(model.with_extension("int8.onnx")));
            let request = Request { model: model.clone(), sources, data, output, threads: 1, ..Request::default() };
            convert(&request, &Silent).unwrap_or_else(|e| panic!("{recipe}, {}: {e}", model.display()));
        }
        let judged: BTreeMap<String, (f64, u64)> = serde_json::from_str(&crate::python::run("exporters.py", &["judge", folder])).unwrap();
        assert_eq!(judged.len(), models.len());
        for (name, (db, ifs)) in judged {
            println!("{recipe}: {name} {db:.1} dB, {ifs} Ifs");
            assert!(db > 18.0, "{recipe}: {name} has {db} dB");
            // Which branch is taken is known from declared shapes in one of them.
            assert_eq!(ifs, matches!(name.as_str(), "squeeze_if" | "rate_if") as u64, "{name}");
        }
    }
}
