//! Compiles proto/onnx.proto: Rust types by prost, and a table of every message's fields, by which unknown ones are told; lists the files of configs/.

use std::fmt::Write;

fn main() {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    println!("cargo:rerun-if-changed=build.rs");
    let schema = protox::compile(["proto/onnx.proto"], ["proto"]).expect("proto/onnx.proto compiles");

    let mut messages = Vec::new();
    for file in &schema.file {
        let mut open: Vec<_> = file.message_type.iter().map(|m| (format!(".{}.{}", file.package(), m.name()), m)).collect();
        while let Some((name, message)) = open.pop() {
            open.extend(message.nested_type.iter().map(|m| (format!("{name}.{}", m.name()), m)));
            messages.push((name, message));
        }
    }
    messages.sort_by(|a, b| a.0.cmp(&b.0));
    let mut table = String::from("pub static MESSAGES: &[Message] = &[\n");
    for (name, message) in &messages {
        write!(table, "    Message {{ name: {:?}, fields: &[", name.trim_start_matches(".onnx.")).unwrap();
        for f in &message.field {
            let inner = messages.iter().position(|(n, _)| n == f.type_name());
            write!(table, "Field {{ number: {}, name: {:?}, message: {inner:?} }}, ", f.number(), f.name()).unwrap();
        }
        table.push_str("] },\n");
    }
    table.push_str("];\n");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(
        format!("{out}/configs.rs"),
        configs("RECIPES", "configs")
            + &configs("TARGETS", "configs/targets")
            + &configs("PRESETS", "configs/presets")
            + &configs("SCHEMES", "configs/schemes"),
    )
    .expect("OUT_DIR is writable");
    std::fs::write(format!("{out}/messages.rs"), table).expect("OUT_DIR is writable");

    prost_build::Config::new().bytes(["."]).compile_fds(schema).expect("prost accepts the schema");
}

/// A list of a folder's YAML files, so that adding one is adding a file.
fn configs(list: &str, folder: &str) -> String {
    println!("cargo:rerun-if-changed={folder}");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".yaml").map(str::to_string)).collect();
    names.sort();
    let mut text = format!("static {list}: &[Config] = &[\n");
    for name in names {
        let file = format!("{folder}/{name}.yaml");
        println!("cargo:rerun-if-changed={file}");
        writeln!(text, "    Config {{ name: {name:?}, text: include_str!({:?}) }},", format!("{root}/{file}")).unwrap();
    }
    text + "];\n"
}
