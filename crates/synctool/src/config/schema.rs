//! The JSON Schema of the files, derived from the structs that read them.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::datastores::DatastoresFile;
use super::form::PipelineFile;
use super::generations::{self, G0File, G1File, G2File};
use super::global::GlobalFile;

/// The files that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaOf {
    /// A pipeline, in the current form or an older generation's.
    Pipeline,
    /// A datastores file.
    Datastores,
    /// The global configuration.
    Global,
}

/// The JSON Schema (draft 2020-12) of a file.
pub fn schema(of: SchemaOf) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = match of {
        SchemaOf::Pipeline => pipeline(&mut generator),
        SchemaOf::Datastores => generator.into_root_schema_for::<DatastoresFile>().to_value(),
        SchemaOf::Global => generator.into_root_schema_for::<GlobalFile>().to_value(),
    };
    allow_variables(&mut schema);
    schema
}

fn pipeline(generator: &mut SchemaGenerator) -> Value {
    let current = generator.subschema_for::<PipelineFile>().to_value();
    let oldest = generator.subschema_for::<G0File>().to_value();
    let first = generator.subschema_for::<G1File>().to_value();
    let second = generator.subschema_for::<G2File>().to_value();
    let definitions = generator.take_definitions(true);
    let any_of = |keys: &[&str]| -> Value {
        let keys: Vec<Value> = keys.iter().map(|key| json!({ "required": [key] })).collect();
        json!({ "anyOf": keys })
    };
    let mut schema = json!({
        "if": any_of(generations::G2_KEYS),
        "then": second,
        "else": {
            "if": any_of(generations::G0_KEYS),
            "then": oldest,
            "else": { "if": any_of(generations::G1_KEYS), "then": first, "else": current },
        },
        "$defs": definitions,
    });
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "SyncTool pipeline".into();
    schema
}

/// Any number, truth value or fixed word may also be given by a variable.
fn allow_variables(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(allow_variables);
            let typed = |name: &str| match object.get("type") {
                Some(Value::String(t)) => t == name,
                Some(Value::Array(types)) => types.iter().any(|t| t == name),
                _ => false,
            };
            let words = object.contains_key("enum") && typed("string");
            if words || typed("integer") || typed("number") || typed("boolean") {
                let description = object.remove("description");
                let plain = Value::Object(std::mem::take(object));
                if let Some(description) = description {
                    object.insert("description".into(), description);
                }
                object.insert(
                    "anyOf".into(),
                    json!([plain, { "type": "string", "pattern": "\\$\\{" }]),
                );
            }
        }
        Value::Array(items) => items.iter_mut().for_each(allow_variables),
        _ => {}
    }
}
