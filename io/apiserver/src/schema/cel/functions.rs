//! The functions Kubernetes adds to CEL: addresses, URLs, quantities, regular expressions, named formats, sets.
use std::sync::Arc;

use cel::Value as Cel;
use cel::extractors::This;
use cel::objects::OptionalValue;
use cel::{Context, ExecutionError};

use super::super::formats;
use super::super::quantity::Quantity;

type Text = Arc<String>;
type List = Arc<Vec<Cel>>;

/// Everything a rule may call: operators, the standard library, extensions and Kubernetes' own.
const KNOWN: &[&str] = &[
    // standard library
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "timestamp",
    "duration",
    "type",
    "dyn",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    // optional values
    "of",
    "none",
    "ofNonZeroValue",
    "hasValue",
    "value",
    "or",
    "orValue",
    "optMap",
    "optFlatMap",
    // strings
    "charAt",
    "indexOf",
    "lastIndexOf",
    "join",
    "lowerAscii",
    "upperAscii",
    "trim",
    "replace",
    "split",
    "substring",
    "format",
    "quote",
    "reverse",
    // lists, sets, math
    "isSorted",
    "sum",
    "min",
    "max",
    "slice",
    "flatten",
    "distinct",
    "sort",
    "intersects",
    "equivalent",
    "greatest",
    "least",
    "abs",
    "ceil",
    "floor",
    "round",
    "sign",
    "trunc",
    // Kubernetes
    "isIP",
    "isCIDR",
    "isURL",
    "isQuantity",
    "find",
    "findAll",
    "validate",
];

const OPERATOR_MARKS: &[char] = &['_', '@', '!', '-'];

pub(super) fn is_known(name: &str) -> bool {
    name.starts_with(OPERATOR_MARKS)
        || KNOWN.contains(&name)
        || FORMATS.iter().any(|(format, _)| *format == name)
}

type FormatCheck = fn(&str) -> bool;

const FORMATS: &[(&str, FormatCheck)] = &[
    ("dns1123Label", formats::is_dns1123_label),
    ("dns1123Subdomain", formats::is_dns1123_subdomain),
    ("dns1035Label", formats::is_dns1035_label),
    ("qualifiedName", formats::is_qualified_name),
    ("labelValue", formats::is_label_value),
    ("dns1123LabelPrefix", |text| formats::is_dns1123_label(text.trim_end_matches('-'))),
    ("dns1123SubdomainPrefix", |text| formats::is_dns1123_subdomain(text.trim_end_matches('-'))),
    ("dns1035LabelPrefix", |text| formats::is_dns1035_label(text.trim_end_matches('-'))),
    ("uri", formats::is_uri),
    ("uuid", formats::is_uuid),
    ("byte", |text| formats::decode_base64(text).is_ok()),
    ("date", |text| text.parse::<jiff::civil::Date>().is_ok()),
    ("datetime", |text| formats::parse_time(text).is_some()),
];

/// Declares Kubernetes' functions. Each name is new to the environment, so declaring cannot fail.
pub(super) fn add(context: &mut Context<'_, '_>) {
    let declared = [
        context.add_function("isIP", |text: Text| formats::parse_ip(&text).is_some()),
        context.add_function("isCIDR", |text: Text| formats::parse_cidr(&text).is_some()),
        context.add_function("isURL", |text: Text| formats::is_uri(&text)),
        context.add_function("isQuantity", |text: Text| Quantity::parse(&text).is_some()),
        context.add_function("find", |This(text): This<Text>, pattern: Text| find(&text, &pattern)),
        context.add_function("findAll", |This(text): This<Text>, pattern: Text| find_all(&text, &pattern)),
        context.add_function("isSorted", |This(list): This<List>| list.is_sorted()),
        context.add_function("sum", |This(list): This<List>| sum(&list)),
        context.add_function("min", |This(list): This<List>| extreme(&list, std::cmp::Ordering::Less)),
        context.add_function("max", |This(list): This<List>| extreme(&list, std::cmp::Ordering::Greater)),
        context.add_function("sets.contains", |a: List, b: List| b.iter().all(|x| a.contains(x))),
        context.add_function("sets.intersects", |a: List, b: List| b.iter().any(|x| a.contains(x))),
        context.add_function("sets.equivalent", |a: List, b: List| {
            b.iter().all(|x| a.contains(x)) && a.iter().all(|x| b.contains(x))
        }),
        context.add_function("validate", |This(format): This<Text>, text: Text| validate(&format, &text)),
    ];
    debug_assert!(declared.iter().all(Result::is_ok), "{declared:?}");
    for (name, _) in FORMATS {
        let added = context.add_function(&format!("format.{name}"), move || Arc::new((*name).to_owned()));
        debug_assert!(added.is_ok(), "{name}: {added:?}");
    }
}

fn pattern(pattern: &str) -> Result<regex::Regex, ExecutionError> {
    regex::Regex::new(pattern).map_err(|error| ExecutionError::FunctionError {
        function: "find".to_owned(),
        message: error.to_string(),
    })
}

fn find(text: &str, expression: &str) -> Result<Cel, ExecutionError> {
    let found = pattern(expression)?.find(text).map_or("", |found| found.as_str()).to_owned();
    Ok(Cel::String(Arc::new(found)))
}

fn find_all(text: &str, expression: &str) -> Result<Cel, ExecutionError> {
    let all = pattern(expression)?;
    let all = all.find_iter(text).map(|found| Cel::String(Arc::new(found.as_str().to_owned())));
    Ok(Cel::List(Arc::new(all.collect())))
}

fn sum(list: &[Cel]) -> Result<Cel, ExecutionError> {
    let mut total = Cel::Int(0);
    for item in list {
        total = match (total, item) {
            (Cel::Int(a), Cel::Int(b)) => Cel::Int(a.checked_add(*b).ok_or_else(|| failed("sum overflows"))?),
            (Cel::Int(a), Cel::Float(b)) => Cel::Float(a as f64 + b),
            (Cel::Float(a), Cel::Float(b)) => Cel::Float(a + b),
            _ => return Err(failed("sum needs a list of numbers")),
        };
    }
    Ok(total)
}

fn extreme(list: &[Cel], wanted: std::cmp::Ordering) -> Result<Cel, ExecutionError> {
    let mut items = list.iter();
    let mut best = items.next().ok_or_else(|| failed("min and max need a list with items"))?;
    for item in items {
        if item.partial_cmp(best) == Some(wanted) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn failed(message: &str) -> ExecutionError {
    ExecutionError::FunctionError { function: "list".to_owned(), message: message.to_owned() }
}

/// Kubernetes answers no value for a valid string, and a list of problems for another.
fn validate(format: &str, text: &str) -> Cel {
    let valid = FORMATS.iter().find(|(name, _)| *name == format).is_none_or(|(_, check)| check(text));
    let problem = || Cel::List(Arc::new(vec![Cel::String(Arc::new(format!("not a valid {format}")))]));
    let answer = if valid { OptionalValue::none() } else { OptionalValue::of(problem()) };
    Cel::Opaque(Arc::new(answer))
}

pub(super) fn duration_value(nanos: i64) -> Option<Cel> {
    evaluate_constant(&format!("duration('{nanos}ns')"))
}

pub(super) fn timestamp_value(text: &str) -> Option<Cel> {
    let time = formats::parse_time(text)?;
    evaluate_constant(&format!("timestamp('{time}')"))
}

/// Durations and timestamps are made by the interpreter itself, so that only it depends on its time library.
fn evaluate_constant(source: &str) -> Option<Cel> {
    let env = super::environment();
    env.compile(source).ok()?.execute(&Context::with_env(env.clone())).ok()
}
