//! Recipes that hold, and those that do not.

use super::shape::Shape;
use super::table::{PROFILE, RECIPE, describe};
use super::*;
use crate::quant::Scheme;
use crate::target::Granularity;
use std::path::Path;

/// A folder with `my.yaml` in it, resolved with `set`.
fn resolved(text: &str, set: &[&str]) -> crate::Result<Recipe> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.yaml");
    std::fs::write(&path, text).unwrap();
    let sources = Sources { recipe: Some(path.display().to_string()), set: set.iter().map(|s| s.to_string()).collect(), ..Sources::default() };
    resolve(&sources).map_err(|e| crate::Error::usage(e.to_string().replace(&format!("{}/", dir.path().display()), "")))
}

/// Of some target an override is refused as the recipe's own keys are.
#[test]
fn overrides_are_held_to_what_the_target_holds() {
    for (asked, key) in [("weights: { bits: 4 }", "weights"), ("outputs: { 0: { bits: 16 } }", "outputs.0"), ("inputs: { 1: { format: nf4 } }", "inputs.1")] {
        let text = |name: &str| format!("extends: int8\ntarget: {name}\noverrides: [ {{ ops: [Conv], {asked} }} ]\n");
        let said = |name: String| resolved(&text(&name), &[]).err().map(|e| (e.exit_code(), e.to_string().replace(&name, "T")));
        let told: Vec<_> = crate::recipe::targets().into_iter().filter_map(|(name, _)| said(name)).collect();
        let want = format!("my.yaml: overrides[0]: {key}: target T does not hold ");
        assert!(!told.is_empty() && told.iter().all(|(code, e)| *code == 2 && e.starts_with(&want) && e.contains("; it holds ")), "{asked}: {told:?}");
    }
}

fn refused(text: &str, set: &[&str], want: &str) {
    let e = resolved(text, set).expect_err(text);
    assert_eq!(e.exit_code(), 2);
    assert!(e.to_string().starts_with(want), "{text:?} {set:?}\n  said:   {e}\n  wanted: {want}");
}

/// What `outputs` says without a slot's number is said of every one.
#[test]
fn a_scheme_without_a_slot_is_for_all() {
    let one = |text: &str| {
        resolved(&format!("extends: int8\noverrides: [ {{ ops: [Softmax], outputs: {text} }} ]\n"), &[]).unwrap().overrides.pop().unwrap().set.outputs
    };
    let (all, first) = (one("{ format: uint16, scale: 1/65536, zero_point: 0 }"), one("{ 0: { format: uint16, scale: 1/65536, zero_point: 0 } }"));
    assert!(first.len() == 1 && all.len() > 16 && all[&0] == first[&0] && all[&5] == first[&0]);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, want) in [
        ("weights: { bits: 8 }\nactivatons: { bits: 8 }\n", "my.yaml:2:1: unknown key `activatons`; did you mean `activations`?"),
        (
            "extends: int8\nsteps:\n  - calibrate: { activations: { methd: minmax } }\n",
            "my.yaml:3:33: activations: unknown key `methd`; did you mean `method`?",
        ),
        ("extends: int8\ndata: { samples: many }\n", "my.yaml:2:18: samples: many is not a whole number of at least 1"),
        ("extends: int8\ndata: { samples: 0 }\n", "my.yaml:2:18: samples: 0 is not"),
        ("extends: int8\nsteps: [ quantise ]\n", "my.yaml:2:10: steps: unknown step `quantise`"),
        ("extends: int8\nsteps: [ { round: magic } ]\n", "my.yaml:2:19: round: unknown value `magic`"),
        ("extends: int8\nsteps: [ { place: now } ]\n", "my.yaml:2:19: place: `now`: this step takes no scalar"),
        ("extends: int8\nsteps: [ { round: nearest, lower: qdq } ]\n", "my.yaml:2:10: steps: step `round` is followed by another key"),
        ("extends: int8\ntarget: no-such-chip\n", "my.yaml:2:9: target: unknown target `no-such-chip`; there are "),
        ("extends: nothing\n", "my.yaml:1:10: extends: unknown recipe `nothing`"),
        ("extends: my.yaml\n", "my.yaml: `extends` goes in a circle"),
        ("extends: gone.yaml\n", "my.yaml: extends: gone.yaml does not exist"),
        ("extends: int8\nextends: int8\n", "my.yaml:2:1: key `extends` stands twice"),
        ("extends: int8\nweights: { format: nf5 }\n", "my.yaml:2:20: format: unknown value `nf5`"),
        ("extends: int8\nweights: 8\n", "my.yaml:2:10: weights: 8 is not a map of bits"),
        ("extends: int8\nactivations: { format: nf4 }\n", "my.yaml: activations: target generic does not hold nf4; it holds int2, int4"),
        ("extends: int8\nweights: { format: float8e4m3fn, zero_point: real }\n", "my.yaml: weights: format `float8e4m3fn` has no zero point"),
        ("extends: int8\nweights: { timing: dynamic }\n", "my.yaml: weights: `timing: dynamic` is for activations"),
        ("extends: int8\nactivations: { granularity: token }\n", "my.yaml: activations: scales a token are found when the model runs"),
        ("extends: int8\nactivations: { granularity: channel }\n", "my.yaml: activations: `granularity: channel` of activations needs the `axis`"),
        ("extends: int8\nactivations: { range: [2, 1] }\n", "my.yaml:2:23: range: a range is [low, high]"),
        ("extends: int8\noverrides: [ { keep: float } ]\n", "my.yaml: overrides[0]: it selects nothing"),
        ("extends: int8\noverrides: [ { ops: [Conv] } ]\n", "my.yaml: overrides[0]: it asks for nothing"),
        ("extends: int8\noverrides: [ { ops: [Cnv], keep: float } ]\n", "my.yaml:2:22: ops: unknown value `Cnv`; did you mean `Conv`?"),
        (
            "extends: int8\noverrides: [ { ops: [Conv], inputs: { first: none } } ]\n",
            "my.yaml:2:37: inputs: `first` is not the number of a slot, and unknown key `first`",
        ),
        (
            "extends: int8\noverrides: [ { ops: [Conv], inputs: { 0: none, bits: 8 } } ]\n",
            "my.yaml: overrides[0]: inputs: slots and keys for all slots stand side by side",
        ),
        ("weights: { bits: 8 }\n", "my: neither the recipe nor what it extends says any `steps`"),
        ("", "my.yaml: it is empty"),
        ("# nothing\n\n", "my.yaml: it is empty"),
        ("\t- x", "my.yaml:1:1: "),
        ("[1, 2]\n", "my.yaml:1:1: a list stands here"),
        ("extends: int8\n---\nextends: int8\n", "my.yaml: it holds more than one document"),
        ("memory: 4GB\nextends: int8\n", "my.yaml:1:9: memory: \"4GB\" is not a size such as 4GiB"),
    ] {
        refused(text, &[], want);
    }
}

#[test]
fn depth_and_aliases_are_bounded() {
    let deep = format!("inputs: {}{}", "{ a: ".repeat(10_000), "}".repeat(10_000));
    refused(&deep, &[], "my.yaml:");
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    (1..12).for_each(|i| bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    refused(&bomb, &[], "my.yaml:");
    refused(&format!("extends: int8\n# {}\n", "x".repeat(1 << 20)), &[], "my.yaml: it has");
}

#[test]
fn the_command_line_is_held_to_the_same_table() {
    let text = "extends: int8\n";
    for (set, want) in [
        ("calibrate.activations.methd=minmax", "--set calibrate.activations.methd=minmax: unknown key `methd`; did you mean `method`?"),
        ("samples", "--set samples: say KEY=VALUE"),
        ("data.samples=0", "--set data.samples=0: 0 is not a whole number of at least 1"),
        ("data.samples=", "--set data.samples=: no value stands behind ="),
        ("round[1].method=nearest", "--set round[1].method=nearest: `round` stands 1 times only"),
        ("round=nearest", "--set round=nearest: say which key of `round`"),
        ("bogus=1", "--set bogus=1: unknown key `bogus`"),
        ("calibrat.activations.method=minmax", "--set calibrat.activations.method=minmax: the recipe has no step `calibrat`"),
        ("overrides=[]", "--set overrides=[]: write overrides+="),
        ("weights+=1", "--set weights+=1: `weights` is not a list"),
    ] {
        refused(text, &[set], want);
    }
    let twice = "steps: [place, { calibrate: { id: a } }, { calibrate: { id: b } }, { round: nearest }, { lower: qdq }]\n";
    refused(twice, &["calibrate.activations.method=minmax"], "--set calibrate.activations.method=minmax: `calibrate` stands 2 times; say calibrate[0]");
    let r = resolved(twice, &["calibrate[0].activations.method=minmax", "b.activations.method=percentile"]).unwrap();
    let methods: Vec<_> = r.steps.iter().filter_map(|s| s.args.text("activations.method")).collect();
    assert_eq!(methods, ["minmax", "percentile"]);
}

#[test]
fn later_layers_win() {
    let r = resolve(&Sources::default()).unwrap();
    assert_eq!((r.name.as_str(), r.target.name.as_str()), ("int8", "generic"));
    let (w, a) = (r.weights.unwrap(), r.activations.unwrap());
    assert_eq!((w.bits, w.format.as_deref(), w.granularity), (Some(8), Some("int8"), Some(Granularity::Channel)));
    assert_eq!(a.format.as_deref(), Some("uint8"));
    assert_eq!(r.data, DataRecipe { samples: 128, validate: None, shuffle: true });

    let text = "extends: int8\nactivations: { bits: 16 }\ndata: { samples: 7, shuffle: false }\noverrides: [ { ops: [Softmax], keep: float } ]\n";
    let r = resolved(text, &["data.samples=9", "weights.granularity=tensor", "overrides+={nodes: /head/**, keep: float}", "gate.sqnr_db=20"]).unwrap();
    assert_eq!(r.data, DataRecipe { samples: 9, validate: None, shuffle: false });
    assert_eq!(r.activations.as_ref().unwrap().format.as_deref(), Some("uint16"), "bits keep the target's signedness");
    assert_eq!(r.weights.as_ref().unwrap().granularity, Some(Granularity::Tensor));
    assert_eq!(r.overrides.iter().map(|o| o.origin.as_str()).collect::<Vec<_>>().len(), 2);
    assert_eq!(r.gate.sqnr_db, Some(20.0));
    let from = |key: &str| r.origins.iter().find(|o| o.key == key).map(|o| o.from.clone()).unwrap_or_default();
    assert_eq!(from("data.samples"), "--set data.samples=9");
    assert!(from("activations.bits").ends_with("my.yaml"));
    assert_eq!(from("activations.granularity"), "target generic");
    assert_eq!(from("weights.bits"), "recipe int8");

    let w8 =
        resolve(&Sources { recipe: Some("w8".into()), exclude: vec!["/a".into()], fix_dims: vec!["N=4".into()], seed: Some(3), ..Sources::default() }).unwrap();
    assert!(w8.activations.is_none() && w8.weights.is_some());
    assert_eq!((w8.overrides.len(), w8.fix_dims["N"], w8.seed), (1, 4, 3));
    assert!(resolve(&Sources { fix_dims: vec!["N".into()], ..Sources::default() }).is_err());
    assert!(
        resolve(&Sources { target: Some("nobody".into()), ..Sources::default() }).unwrap_err().to_string().starts_with("--target: unknown target `nobody`")
    );
}

#[test]
fn what_is_shipped_holds_and_says_whom_it_is_for() {
    for (name, doc) in recipes() {
        let r = resolve(&Sources { recipe: Some(name.clone()), ..Sources::default() }).unwrap();
        assert!(doc.len() > 20, "{name} says in its first line what it is");
        steps::check_order(&r).unwrap();
        let text = recipe_text(&name).unwrap();
        ["# For whom:", "# Cost:", "# Source:"].iter().for_each(|head| assert!(text.contains(head), "{name}: {head}"));
        // What was resolved resolves to the same.
        let again = resolved(&r.resolved, &[]).unwrap();
        assert_eq!(again.resolved, r.resolved, "{name}");
        let same = |x: &Recipe| (x.weights.clone(), x.activations.clone(), x.bias.clone(), x.data.clone(), x.memory, x.gate, x.overrides.len());
        assert_eq!(same(&again), same(&r), "{name}");
        assert_eq!(
            again.steps.iter().map(|s| (s.name, s.args.clone())).collect::<Vec<_>>(),
            r.steps.iter().map(|s| (s.name, s.args.clone())).collect::<Vec<_>>()
        );
    }
    for (name, _) in targets() {
        profile(&name).unwrap();
    }
}

#[test]
fn every_step_has_somebody_to_carry_it_out_and_orders_are_checked() {
    STEPS.iter().for_each(|row| assert!(steps::run_of(row.name).is_some(), "{}", row.name));
    for (list, words) in [
        ("[fold-constants, calibrate, place]", "step `calibrate` needs a placed or fitted model, and gets a float one: `place` must stand before it"),
        ("[place, calibrate]", "the steps end with `calibrate`"),
        ("[place, place]", "move it further up"),
        ("[place, { round: nearest }]", "`calibrate` must stand before it"),
    ] {
        let r = resolved(&format!("extends: int8\nsteps: {list}\n"), &[]).unwrap();
        let e = steps::check_order(&r).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(words), "{e}");
    }
}

#[test]
fn schema_and_docs_know_every_key() {
    let schema = schema();
    RECIPE.iter().for_each(|k| assert!(schema["properties"][k.name].is_object(), "{}", k.name));
    assert!(schema["properties"]["steps"]["items"]["anyOf"][1]["properties"]["calibrate"].is_object());
    blessed("docs/recipes.md", &reference());
}

/// docs/formats.md, from the tables of formats and schemes.
#[test]
fn schema_and_docs_know_every_format() {
    use crate::quant::{Blocks, Scheme};
    use crate::target::{FORMATS, spelling};
    let row = |f: &crate::target::NamedFormat| {
        let scheme = Scheme { format: f.format, blocks: Blocks::block(0, 32), ..Scheme::int(8, true) };
        let opset = spelling::qdq_opset(&scheme, Some(&[64, 8])).map_or_else(|_| "—".into(), |o| o.to_string());
        let channel = Scheme { blocks: Blocks::channel(1), ..scheme };
        let plain = spelling::qdq_opset(&channel, Some(&[64, 8])).map_or_else(|_| "—".into(), |o| o.to_string());
        let stored = f.format.storage().map_or("—".to_string(), |t| t.name().to_string());
        format!("| `{}` | {} | {stored} | {plain} | {opset} | {} |\n", f.name, f.format.bits(), f.doc)
    };
    let formats: String = FORMATS.iter().map(row).collect();
    let scheme = |(name, doc): &(String, String)| {
        let keys = read::scheme_tree(&read::scheme(&Tree::Map(vec![("format".into(), Tree::Text(name.clone()))])));
        format!("| `{name}` | {doc} | `{}` |\n", keys.show())
    };
    let schemes: String = schemes().iter().map(scheme).collect();
    let tables = format!(
        "\n## Formats\n\n| format | bits | stored as | opset, one scale a channel | opset, in blocks | values |\n|---|---|---|---|---|---|\n{formats}\n\
         ## Schemes\n\n| `format:` | what it is | the same in keys |\n|---|---|---|\n{schemes}"
    );
    blessed("docs/formats.md", &tables);
}

/// Holds the page at `path` to the tables behind its mark, or, with REQUANT_BLESS, writes them.
pub fn blessed(path: &str, tables: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let page = std::fs::read_to_string(&file).unwrap();
    let (head, _) = page.split_once(MARK).unwrap_or_else(|| panic!("{path} has the line before its tables"));
    let wanted = format!("{head}{MARK}\n{tables}");
    if std::env::var_os("REQUANT_BLESS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    }
    assert!(page == wanted, "{path} is not what the tables say; REQUANT_BLESS=1 makes it so");
}

/// What a scheme names is a scheme: every shipped one holds, and reads back as it was.
#[test]
fn shipped_schemes_hold() {
    for (name, doc) in schemes() {
        assert!(doc.len() > 20, "{name}");
        let keys = read::scheme(&Tree::Map(vec![("format".into(), Tree::Text(name.clone()))]));
        assert_eq!(read::scheme(&read::scheme_tree(&keys)), keys, "{name}");
        let scheme = keys.scheme_along(Some(1), Some(0)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(scheme.blocks.block_axis().is_some_and(|(axis, _)| axis == 0), "{name}");
        crate::target::spelling::qdq_opset(&scheme, Some(&[64, 8])).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let r = resolved("extends: w8\nweights: { format: lpbq4, block_size: 32 }\n", &[]).unwrap();
    let keys = r.weights.clone().unwrap();
    assert_eq!((keys.format.as_deref(), keys.block_size, keys.granularity), (Some("int4"), Some(32), Some(Granularity::Block)));
    assert_eq!(resolved(&r.resolved, &[]).unwrap().weights, r.weights);
    let over = read::scheme(&Tree::Map(vec![("bits".into(), Tree::Int(8))]));
    assert_eq!(
        over.over(&read::scheme(&Tree::Map(vec![("format".into(), Tree::Text("nf4".into()))]))).scheme(None).unwrap().format,
        Scheme::int(8, true).format
    );
}

#[test]
fn weights_alone_need_no_more_than_round_and_lower() {
    let text = "activations: none\nweights: { format: uint4, granularity: block, block_size: 32 }\n\
                steps: [ { round: nearest }, { lower: { form: matmul-nbits, accuracy_level: 4 } } ]\n\
                overrides: [ { nodes: \"/lm_head/**\", weights: { bits: 8 } } ]\n";
    let r = resolved(text, &[]).unwrap();
    assert_eq!(r.steps.iter().map(|s| s.name).collect::<Vec<_>>(), ["place", "calibrate", "round", "lower"]);
    assert_eq!((r.steps[0].origin.as_str(), r.steps[3].args.int("accuracy_level")), ("implied by `round`", Some(4)));
    steps::check_order(&r).unwrap();
    let set = resolved(text, &["calibrate.weights.method=mse"]).unwrap();
    assert_eq!(set.steps[1].args.text("weights.method"), Some("mse"));
    let e = steps::check_order(&resolved(&text.replace("activations: none", "activations: { bits: 8 }"), &[]).unwrap()).unwrap_err();
    assert!(e.to_string().contains("`calibrate` must stand before it"), "{e}");
    let placed = resolved("extends: w8\nsteps: [place, { round: nearest }, { lower: qdq }]\n", &[]).unwrap();
    assert_eq!(placed.steps.iter().map(|s| s.name).collect::<Vec<_>>(), ["place", "calibrate", "round", "lower"]);
}

pub const MARK: &str = "cargo test --lib schema_and_docs -->";

/// Every key, as docs/recipes.md lists them.
fn reference() -> String {
    let page = |title: &str, rows: Vec<(String, String, String)>| {
        let rows: String = rows.iter().map(|(k, v, d)| format!("| `{k}` | {} | {d} |\n", v.replace('|', "\\|"))).collect();
        format!("\n## {title}\n\n| key | value | meaning |\n|---|---|---|\n{rows}")
    };
    let of = |keys| {
        let mut rows = Vec::new();
        describe(keys, "", &mut rows);
        rows
    };
    let overrides = RECIPE.iter().find(|k| k.name == "overrides").map(|k| &k.shape);
    let entry = match overrides {
        Some(Shape::List(Shape::Map(keys))) => of(keys),
        _ => panic!("overrides are a list of maps"),
    };
    let input = match RECIPE.iter().find(|k| k.name == "inputs").map(|k| &k.shape) {
        Some(Shape::MapOf(Shape::Map(keys))) => of(keys),
        _ => panic!("inputs are a map of maps"),
    };
    let mut text = page("Recipe", of(RECIPE)) + &page("Schemes", of(table::SCHEME)) + &page("Inputs: `inputs.NAME`", input) + &page("Overrides", entry);
    for step in STEPS {
        text += &page(&format!("Step `{}`: {}", step.name, step.doc), step_keys(step));
    }
    let list = |title: &str, rows: Vec<(String, String)>| {
        let rows: String = rows.iter().map(|(n, d)| format!("| `{n}` | {d} |\n")).collect();
        format!("\n## {title}\n\n| | |\n|---|---|\n{rows}")
    };
    text + &page("Targets", of(PROFILE)) + &list("Shipped recipes", recipes()) + &list("Shipped targets", targets())
}

#[test]
fn random_changes_of_a_recipe_never_panic() {
    let text = recipe_text("int8-percentile").unwrap();
    let mut state = 1u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let pieces =
        ["{", "}", "[", "]", ": ", "\n", "  ", "- ", "&a ", "*a", "null", "1e999", "0x10", "~", "!!x ", "\"", "'", "|", "\u{7f}", "ä", "weights", "steps"];
    for _ in 0..3000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..1 + next(4) {
            let at = next(bytes.len());
            match next(3) {
                0 => drop(bytes.remove(at)),
                1 => bytes[at] = next(256) as u8,
                _ => drop(bytes.splice(at..at, pieces[next(pieces.len())].bytes())),
            }
        }
        let _ = parse::parse(&bytes, &Shape::Map(RECIPE), "r");
    }
}
