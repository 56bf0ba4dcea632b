//! One schema model for built-in and custom kinds: walking, decoding, validating, pruning and defaulting values.
//! Rules that only certain built-in kinds have live in `defaults`; merging values lives with the server.
mod builtin;
mod cel;
mod decode;
mod duplicates;
mod errors;
pub(crate) mod facts;
mod fill;
pub(crate) mod formats;
mod model;
mod parse;
pub(crate) mod quantity;
mod structural;
mod validate;

pub(crate) use builtin::subresource_define;
pub use builtin::{Define, definitions};
pub use cel::{Budget, Rule};
pub use decode::{Decoded, decode, decode_message, prune};
pub use duplicates::duplicate_fields;
pub use errors::{FieldError, FieldReason, invalid_message, invalid_status};
pub use fill::fill_defaults;
pub use formats::{is_dns1123_label, is_dns1123_subdomain};
pub use model::{Additional, ListType, PatchStrategy, Schema, Type, ValidationRule};
pub use parse::parse_custom;
pub use structural::check_definition;
pub use validate::{validate, validate_rules};

use crate::kinds::{Kind, SchemaSource};

/// The schema of a kind's whole object.
pub fn root(kind: &Kind) -> Schema {
    match &kind.schema {
        SchemaSource::BuiltIn(define) => builtin::schema(*define, &kind.schema_name),
        SchemaSource::Custom(schema) => schema.clone(),
    }
}
