//! A Corefile's structure: server blocks, their plugins and options, with snippets and imported files put in place.

use std::collections::HashMap;

use super::{CorefileError, NamedText};

/// Imports within imports end here: a file may import itself.
const DEEPEST_IMPORT: usize = 8;
const MOST_LINES: usize = 100_000;

/// A line's words and where they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub file: String,
    pub number: usize,
    pub words: Vec<String>,
}

impl Line {
    pub fn text(&self) -> String {
        self.words.join(" ")
    }
}

/// A plugin's line and the lines in its braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    pub line: Line,
    pub body: Vec<Line>,
}

/// A server block: the zones it answers for, and its plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub line: Line,
    pub keys: Vec<String>,
    pub directives: Vec<Directive>,
}

type Load<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<NamedText>, String>;

pub fn parse(file: &str, text: &str, load: Load<'_>) -> Result<Vec<Block>, CorefileError> {
    let mut reader = Reader { load, snippets: HashMap::new(), lines: 0 };
    let lines = reader.expand(split(file, text)?, 0)?;
    blocks(&lines)
}

fn error<T>(line: &Line, reason: impl Into<String>) -> Result<T, CorefileError> {
    Err(CorefileError { file: line.file.clone(), line: line.number, reason: reason.into() })
}

/// Lines with at least one word. Quotes keep spaces together; what follows a `#` is a comment.
fn split(file: &str, text: &str) -> Result<Vec<Line>, CorefileError> {
    let mut lines = Vec::new();
    let mut current = Line { file: file.to_owned(), number: 1, words: Vec::new() };
    let mut word: Option<String> = None;
    let (mut quoted, mut number) = (false, 1);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if quoted && letters.peek() == Some(&'"') => {
                word.get_or_insert_default().extend(letters.next())
            }
            '"' if quoted || word.is_none() => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => while letters.next_if(|letter| *letter != '\n').is_some() {},
            letter if letter.is_whitespace() && !quoted => current.words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
        if letter == '\n' {
            number += 1;
            if !quoted {
                let next = Line { file: file.to_owned(), number, words: Vec::new() };
                lines.push(std::mem::replace(&mut current, next));
            }
        }
    }
    if quoted {
        return error(&current, "a quote is not closed");
    }
    current.words.extend(word);
    lines.push(current);
    lines.retain(|line| !line.words.is_empty());
    Ok(lines)
}

struct Reader<'a> {
    load: Load<'a>,
    snippets: HashMap<String, Vec<Line>>,
    lines: usize,
}

impl Reader<'_> {
    /// Takes out snippets, and puts what is imported in place of the line that does.
    fn expand(&mut self, lines: Vec<Line>, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let mut expanded = Vec::new();
        let mut lines = lines.into_iter();
        let mut open = 0usize;
        while let Some(line) = lines.next() {
            self.lines += 1;
            if self.lines > MOST_LINES {
                return error(&line, "there are too many lines with all that is imported");
            }
            if let (0, Some(name)) = (open, snippet_name(&line)) {
                let body = snippet_body(&line, &mut lines)?;
                self.snippets.insert(name, body);
                continue;
            }
            if line.words[0] == "import" {
                expanded.extend(self.import(&line, depth)?);
                continue;
            }
            open += usize::from(opens(&line));
            open = open.saturating_sub(usize::from(closes(&line)));
            expanded.push(line);
        }
        Ok(expanded)
    }

    fn import(&mut self, line: &Line, depth: usize) -> Result<Vec<Line>, CorefileError> {
        let Some(name) = line.words.get(1) else { return error(line, "import names no file") };
        if depth >= DEEPEST_IMPORT {
            return error(
                line,
                format!("imports go deeper than {DEEPEST_IMPORT}: does a file import itself?"),
            );
        }
        if let Some(snippet) = self.snippets.get(name).cloned() {
            return self.expand(with_arguments(snippet, &line.words[2..]), depth + 1);
        }
        let files = match (self.load)(name) {
            Ok(files) => files,
            Err(reason) => return error(line, format!("import {name}: {reason}")),
        };
        let mut lines = Vec::new();
        for (file, text) in files {
            lines.extend(self.expand(split(&file, &text)?, depth + 1)?);
        }
        Ok(lines)
    }
}

/// `{args[0]}` and the older `{args.0}` stand for what follows the snippet's name.
fn with_arguments(mut snippet: Vec<Line>, arguments: &[String]) -> Vec<Line> {
    for word in snippet.iter_mut().flat_map(|line| &mut line.words) {
        for (index, argument) in arguments.iter().enumerate() {
            for place in [format!("{{args[{index}]}}"), format!("{{args.{index}}}")] {
                if word.contains(&place) {
                    *word = word.replace(&place, argument);
                }
            }
        }
    }
    snippet
}

fn opens(line: &Line) -> bool {
    line.words.last().is_some_and(|word| word == "{")
}

fn closes(line: &Line) -> bool {
    line.words.len() == 1 && line.words[0] == "}"
}

fn snippet_name(line: &Line) -> Option<String> {
    let name = line.words.first()?.strip_prefix('(')?.strip_suffix(')')?;
    (line.words.len() == 2 && opens(line)).then(|| name.to_owned())
}

/// The lines up to the brace that closes the one at the end of `start`.
fn snippet_body(start: &Line, lines: &mut impl Iterator<Item = Line>) -> Result<Vec<Line>, CorefileError> {
    let mut body = Vec::new();
    let mut open = 1usize;
    for line in lines {
        open += usize::from(opens(&line));
        open -= usize::from(closes(&line));
        if open == 0 {
            return Ok(body);
        }
        body.push(line);
    }
    error(start, "the brace is not closed")
}

fn blocks(lines: &[Line]) -> Result<Vec<Block>, CorefileError> {
    let mut blocks = Vec::new();
    let mut rest = lines;
    while let Some(first) = rest.first() {
        let mut keys = Vec::new();
        let mut opened = false;
        while let Some((line, after)) = rest.split_first() {
            rest = after;
            opened = opens(line);
            let words = &line.words[..line.words.len() - usize::from(opened)];
            keys.extend(words.iter().map(|word| word.trim_end_matches(',').to_owned()));
            // Keys go on over the line after a comma only.
            if opened || !words.last().is_some_and(|word| word.ends_with(',')) {
                break;
            }
        }
        keys.retain(|key| !key.is_empty());
        if let Some(stray) = keys.iter().find(|key| matches!(key.as_str(), "{" | "}")) {
            return error(first, format!("{stray} is not where it can be"));
        }
        if keys.is_empty() {
            return error(first, "a server block names no zone");
        }
        if !opened {
            // One block without braces may make up the whole file.
            return error(first, "no opening brace follows the zones");
        }
        let directives = directives(first, &mut rest)?;
        blocks.push(Block { line: first.clone(), keys, directives });
    }
    Ok(blocks)
}

fn directives(start: &Line, rest: &mut &[Line]) -> Result<Vec<Directive>, CorefileError> {
    let mut directives = Vec::new();
    while let Some((line, after)) = rest.split_first() {
        *rest = after;
        if closes(line) {
            return Ok(directives);
        }
        if line.words[0] == "{" {
            return error(line, "a brace opens without a plugin before it");
        }
        let mut directive = Directive { line: line.clone(), body: Vec::new() };
        if opens(line) {
            directive.line.words.pop();
            directive.body = body(line, rest)?;
        }
        directives.push(directive);
    }
    error(start, "the brace is not closed")
}

/// The lines of a plugin's braces; braces within are kept as lines.
fn body(start: &Line, rest: &mut &[Line]) -> Result<Vec<Line>, CorefileError> {
    let mut lines = Vec::new();
    let mut open = 1usize;
    while let Some((line, after)) = rest.split_first() {
        *rest = after;
        open += usize::from(opens(line));
        open -= usize::from(closes(line));
        if open == 0 {
            return Ok(lines);
        }
        lines.push(line.clone());
    }
    error(start, "the brace is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, String> {
        let mut load = |name: &str| match name {
            "more" => Ok(vec![("more".to_owned(), "log\nerrors".to_owned())]),
            "self" => Ok(vec![("self".to_owned(), "import self".to_owned())]),
            "*.none" => Ok(vec![]),
            _ => Err("no such file".to_owned()),
        };
        let blocks = parse("Corefile", text, &mut load).map_err(|error| error.to_string())?;
        let row = |directive: &Directive| {
            let body: Vec<_> = directive.body.iter().map(Line::text).collect();
            format!(
                "{}@{}:{}[{}]",
                directive.line.text(),
                directive.line.file,
                directive.line.number,
                body.join("; ")
            )
        };
        let block = |block: &Block| {
            format!(
                "{}: {}",
                block.keys.join("+"),
                block.directives.iter().map(row).collect::<Vec<_>>().join(" ")
            )
        };
        Ok(blocks.iter().map(block).collect::<Vec<_>>().join(" | "))
    }

    #[test]
    fn blocks_plugins_and_options_are_told_apart() {
        let text = ". corp.example, # zones\nother.test {\n  forward . 192.0.2.1 {\n    except a b\n  }\n  log \"a b\" # c\n}\na {\n}\n";
        let expected = ".+corp.example+other.test: forward . 192.0.2.1@Corefile:3[except a b] log a b@Corefile:6[] | a: ";
        assert_eq!(parsed(text).unwrap(), expected);
    }

    #[test]
    fn snippets_and_files_are_put_in_place() {
        let text = "(snip) {\n cache {args[0]}\n}\n. {\n import snip 30\n import more\n import *.none\n}";
        assert_eq!(parsed(text).unwrap(), ".: cache 30@Corefile:2[] log@more:1[] errors@more:2[]");
    }

    #[test]
    fn what_is_no_corefile_is_refused_with_its_line() {
        for (text, reason) in [
            (". {\n log\n", "Corefile:1: the brace is not closed"),
            (".\nlog", "Corefile:1: no opening brace follows the zones"),
            (". {\n}\n}", "Corefile:3: } is not where it can be"),
            ("{\n}", "Corefile:1: a server block names no zone"),
            (". {\n import\n}", "Corefile:2: import names no file"),
            (". {\n import gone\n}", "Corefile:2: import gone: no such file"),
            (". {\n import self\n}", "self:1: imports go deeper than 8: does a file import itself?"),
            (". {\n log \"x\n}", "Corefile:2: a quote is not closed"),
        ] {
            assert_eq!(parsed(text), Err(reason.to_owned()), "{text}");
        }
    }
}
