//! The JSON schema of recipes, made from the table that parsing reads.

use super::shape::{Key, Shape, format_names};
use super::step_table::{EVERY_STEP, STEPS};
use super::table::RECIPE;
use crate::graph::Op;
use serde_json::{Map, Value, json};

/// The schema, as `requant schema` prints it.
pub fn schema() -> Value {
    let mut schema = map(RECIPE, &[]);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("A recipe of requant");
    schema
}

fn map(keys: &[Key], more: &[Key]) -> Value {
    let properties: Map<String, Value> = keys
        .iter()
        .chain(more)
        .map(|k| {
            let mut value = of(&k.shape);
            value["description"] = json!(k.doc);
            (k.name.to_string(), value)
        })
        .collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn of(shape: &Shape) -> Value {
    let bounded = |kind: &str, lo: Option<Value>, hi: Option<Value>| {
        let mut v = json!({ "type": kind });
        if let Some(lo) = lo {
            v["minimum"] = lo;
        }
        if let Some(hi) = hi {
            v["maximum"] = hi;
        }
        v
    };
    match shape {
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Int(lo, hi) => bounded("integer", Some(json!(lo)), (*hi != i64::MAX).then(|| json!(hi))),
        Shape::Number(lo, hi) => bounded("number", lo.is_finite().then(|| json!(lo)), hi.is_finite().then(|| json!(hi))),
        Shape::Text | Shape::Name(..) => json!({ "type": "string" }),
        Shape::OneOf(names) => json!({ "enum": names }),
        Shape::Format => json!({ "enum": format_names().collect::<Vec<_>>() }),
        Shape::Op => json!({ "enum": Op::all().map(|op| op.spelling().1).collect::<std::collections::BTreeSet<_>>() }),
        Shape::Bytes => json!({ "type": ["string", "integer"], "pattern": "^[0-9]+(B|KiB|MiB|GiB|TiB)?$" }),
        Shape::Fraction => json!({ "type": ["number", "string"], "pattern": "^[0-9.eE+-]+/[0-9.eE+-]+$" }),
        Shape::Range => json!({ "type": "array", "items": { "type": "number" }, "minItems": 2, "maxItems": 2 }),
        Shape::List(each) => json!({ "type": "array", "items": of(each) }),
        Shape::Map(keys) => map(keys, &[]),
        Shape::MapOf(each) => json!({ "type": "object", "additionalProperties": of(each) }),
        Shape::Slots(each) => {
            json!({ "anyOf": [{ "type": "object", "patternProperties": { "^[0-9]+$": of(each) }, "additionalProperties": false }, of(each)] })
        }
        Shape::Any(shapes) => json!({ "anyOf": shapes.iter().map(of).collect::<Vec<_>>() }),
        Shape::Steps => json!({ "type": "array", "items": step() }),
    }
}

fn step() -> Value {
    let names: Vec<&str> = STEPS.iter().map(|s| s.name).collect();
    let properties: Map<String, Value> = STEPS
        .iter()
        .map(|s| {
            let mut forms = vec![map(s.keys, EVERY_STEP), json!({ "type": "null" })];
            forms.extend(s.scalar.and_then(|name| s.keys.iter().find(|k| k.name == name)).map(|k| of(&k.shape)));
            (s.name.to_string(), json!({ "anyOf": forms, "description": s.doc }))
        })
        .collect();
    json!({ "anyOf": [
        { "enum": names },
        { "type": "object", "properties": properties, "additionalProperties": false, "minProperties": 1, "maxProperties": 1 },
    ] })
}
