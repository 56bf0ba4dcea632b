//! The query of a request: decoded, with repeated names kept in order.
use std::str::FromStr;

use super::Refusal;

pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let split = |pair: &str| match pair.split_once('=') {
            Some((name, value)) => (decode(name), decode(value)),
            None => (decode(pair), String::new()),
        };
        Self(pairs.map(split).collect())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether any of the names is set to a true value; the kubelet's and the API's names differ.
    pub fn is_set(&self, names: &[&str]) -> bool {
        names.iter().filter_map(|name| self.first(name)).any(|value| matches!(value, "1" | "true"))
    }

    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let parse =
            |text: &str| text.parse().map_err(|_| Refusal::bad(format!("{name}={text} is not valid")));
        self.first(name).filter(|text| !text.is_empty()).map(parse).transpose()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.get(..2).and_then(hex)).flatten();
        match (first, escaped) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (first, None) => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_repeat_and_escapes_are_undone() {
        let query = Query::parse("command=sh&command=-c&command=echo+%22a%26b%22%zz&stdin=true&tty=0&n=x");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo \"a&b\"%zz"]);
        assert!(query.is_set(&["input", "stdin"]));
        assert!(!query.is_set(&["tty"]));
        assert!(query.number::<u32>("n").is_err());
        assert!(query.number::<u32>("none").is_ok_and(|number| number.is_none()));
    }
}
