//! Rules as definitions write them, on values that satisfy them and values that do not.
use serde_json::{Value, json};

use super::super::parse_custom;
use super::{Budget, Rule};

fn check(rule: &str, value: Value, old: Option<Value>) -> Result<bool, String> {
    let schema = parse_custom(&json!({"x-kubernetes-preserve-unknown-fields": true}), "schema").unwrap();
    Rule::compile(rule)?.check(&schema, &value, old.as_ref(), false, &mut Budget::default())
}

#[test]
fn rules_hold_and_fail() {
    let cases = [
        ("self.a < self.b", json!({"a": 1, "b": 2}), true),
        ("self.a < self.b", json!({"a": 3, "b": 2}), false),
        ("has(self.a) ? self.a == 'x' : true", json!({}), true),
        ("!(has(self.a) && has(self.b))", json!({"a": 1, "b": 2}), false),
        ("self.all(x, self.exists_one(y, x.n == y.n))", json!([{"n": 1}, {"n": 2}]), true),
        ("self.all(x, self.exists_one(y, x.n == y.n))", json!([{"n": 1}, {"n": 1}]), false),
        ("self.filter(f, f.type == 'A').size() <= 1", json!([{"type": "A"}, {"type": "A"}]), false),
        ("self.matches(r\"\"\"^[a-z]+(\\.[a-z]+)*$\"\"\")", json!("a.b"), true),
        ("self.matches('^[a-z]+$')", json!("a1"), false),
        ("!('*' in self && self.size() > 1)", json!(["*", "a"]), false),
        ("self.all(key, key.split(\"/\")[0].size() < 253)", json!({"a/b": "c"}), true),
        ("isIP(self)", json!("10.0.0.1"), true),
        ("isIP(self)", json!("10.0.0.256"), false),
        ("isCIDR(self)", json!("fd00::/8"), true),
        ("isCIDR(self)", json!("10.0.0.0/33"), false),
        ("duration(self) > duration('1s')", json!("1500ms"), true),
        ("!format.dns1123Label().validate(self).hasValue()", json!("a-b"), true),
        ("!format.dns1123Label().validate(self).hasValue()", json!("A"), false),
        ("self.?a.orValue('none') == 'none'", json!({}), true),
        ("self.__namespace__ == 'x'", json!({"namespace": "x"}), true),
        ("self.x__dash__y == 1", json!({"x-y": 1}), true),
        ("self.isSorted() && self.sum() == 6 && self.max() == 3", json!([1, 2, 3]), true),
        ("sets.contains(self, ['a'])", json!(["a", "b"]), true),
        ("self.find('[0-9]+') == '12'", json!("ab12cd"), true),
        ("self.lowerAscii() == 'ab'", json!("AB"), true),
        ("type(self) == string", json!("AB"), true),
    ];
    for (rule, value, expected) in &cases {
        assert_eq!(check(rule, value.clone(), None), Ok(*expected), "{rule} on {value}");
    }
}

#[test]
fn old_values() {
    assert_eq!(check("self == oldSelf", json!("a"), Some(json!("a"))), Ok(true));
    assert_eq!(check("self == oldSelf", json!("a"), Some(json!("b"))), Ok(false));
    assert!(Rule::compile("self == oldSelf").unwrap().uses_old_self());
}

#[test]
fn what_does_not_compile() {
    for (rule, why) in [
        ("self.a ==", "Syntax error"),
        ("nobody.a == 1", "undeclared reference to 'nobody'"),
        ("frobnicate(self)", "undeclared reference to function 'frobnicate'"),
        ("Thing{a: 1} == self", "undeclared type"),
    ] {
        let error = Rule::compile(rule).unwrap_err();
        assert!(error.contains(why), "{rule}: {error}");
    }
}

#[test]
fn errors_are_reported() {
    let error = check("self.missing == 1", json!({}), None).unwrap_err();
    assert!(error.contains("missing"), "{error}");
    assert!(check("self", json!({}), None).unwrap_err().contains("bool"));
}

#[test]
fn nested_loops_cost_too_much() {
    let schema = parse_custom(&json!({"x-kubernetes-preserve-unknown-fields": true}), "schema").unwrap();
    let rule =
        Rule::compile("self.all(a, self.all(b, self.all(c, self.all(d, a + b + c + d > 0))))").unwrap();
    let value = Value::from((1..=400).collect::<Vec<i64>>());
    let error = rule.check(&schema, &value, None, false, &mut Budget::default()).unwrap_err();
    assert!(error.contains("cost budget"), "{error}");
}
