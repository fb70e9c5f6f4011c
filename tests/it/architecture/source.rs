//! Just enough of a Rust lexer to ask of our own sources which paths, macros and string literals they hold.

use std::fs;
use std::path::Path;

/// What a source file is made of, without comments, lifetimes' meaning or numbers' values.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// An identifier or a keyword.
    Word(String),
    /// The content of a string literal, escapes left as they are.
    Text(String),
    /// Any other character that is not space.
    Mark(char),
}

/// One of our source files.
pub struct Source {
    /// Path below `src/`, with slashes.
    pub path: String,
    /// Module path: `src/graph/op.rs` is `["graph", "op"]`, `src/graph/mod.rs` is `["graph"]`.
    pub module: Vec<String>,
    pub lines: usize,
    /// Tokens with their lines, from 1.
    pub tokens: Vec<(usize, Token)>,
    /// For each token: whether it stands in a `#[cfg(test)]` item.
    pub test: Vec<bool>,
}

/// Every `.rs` file below `src/`, by path.
pub fn sources() -> Vec<Source> {
    let root = crate::repository("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 20, "sources not found below {}", root.display());
    let read = |p: &std::path::PathBuf| {
        let path = p.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        Source::of(&path, &fs::read_to_string(p).unwrap())
    };
    files.iter().map(read).collect()
}

fn collect(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    /// The file at `path` (below `src/`) holding `text`.
    pub fn of(path: &str, text: &str) -> Source {
        let stem = path.strip_suffix(".rs").unwrap();
        let mut module: Vec<String> = stem.split('/').map(String::from).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let tokens = lex(text);
        let test = test_items(&tokens);
        Source { path: path.to_string(), module, lines: text.lines().count(), tokens, test }
    }

    /// The room a file belongs to: the folder or file directly below `src/`; none for lib.rs and main.rs.
    pub fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// Where token `i` stands, for messages.
    pub fn place(&self, i: usize) -> String {
        format!("src/{}:{}", self.path, self.tokens[i].0)
    }

    /// The word at token `i`.
    pub fn word(&self, i: usize) -> Option<&str> {
        match &self.tokens.get(i)?.1 {
            Token::Word(w) => Some(w),
            _ => None,
        }
    }

    pub fn is_mark(&self, i: usize, mark: char) -> bool {
        matches!(self.tokens.get(i), Some((_, Token::Mark(m))) if *m == mark)
    }

    /// Whether `::` stands at token `i`.
    fn is_path_mark(&self, i: usize) -> bool {
        self.is_mark(i, ':') && self.is_mark(i + 1, ':')
    }

    /// What the file names at the crate's root, each with its token: the word after `crate::` (or, in main.rs, `requant::`)
    /// and after as many `super::` as lead out of the room; each branch of a group.
    pub fn root_paths(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        let mut depth = self.module.len();
        // Braces that are open, and whether each belongs to an inline module.
        let mut braces: Vec<bool> = Vec::new();
        let mut i = 0;
        while i < self.tokens.len() {
            if self.is_mark(i, '{') {
                let inline = i >= 2 && self.word(i - 2) == Some("mod");
                braces.push(inline);
                depth += inline as usize;
            } else if self.is_mark(i, '}') {
                depth -= braces.pop().unwrap_or(false) as usize;
            }
            let start = match self.word(i) {
                Some("crate" | "requant") if self.is_path_mark(i + 1) => i + 3,
                Some("super") if self.is_path_mark(i + 1) => {
                    let (mut at, mut ups) = (i + 3, 1);
                    while self.word(at) == Some("super") && self.is_path_mark(at + 1) {
                        (at, ups) = (at + 3, ups + 1);
                    }
                    if ups < depth {
                        i = at;
                        continue;
                    }
                    at
                }
                _ => {
                    i += 1;
                    continue;
                }
            };
            self.heads(start, &mut found);
            i = start;
        }
        found
    }

    /// The first word of a path, or of each branch of a group, at token `i`.
    fn heads<'a>(&'a self, i: usize, found: &mut Vec<(usize, &'a str)>) {
        if let Some(word) = self.word(i) {
            found.push((i, word));
        } else if self.is_mark(i, '{') {
            let (mut level, mut at, mut first) = (1, i + 1, true);
            while level > 0 && at < self.tokens.len() {
                if self.is_mark(at, '{') {
                    level += 1;
                } else if self.is_mark(at, '}') {
                    level -= 1;
                } else if self.is_mark(at, ',') {
                    first |= level == 1;
                } else if let (1, true, Some(word)) = (level, first, self.word(at)) {
                    found.push((at, word));
                    first = false;
                }
                at += 1;
            }
        }
    }
}

/// Splits Rust text into tokens; comments vanish.
fn lex(text: &str) -> Vec<(usize, Token)> {
    let c: Vec<char> = text.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let is_word = |x: char| x.is_alphanumeric() || x == '_';
    let (mut tokens, mut i, mut line) = (Vec::new(), 0, 1);
    while i < c.len() {
        let start = i;
        match c[i] {
            '/' if at(i + 1) == '/' => {
                while i < c.len() && c[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut level = 0;
                while i < c.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (level, i) = (level + 1, i + 2),
                        ('*', '/') => (level, i) = (level - 1, i + 2),
                        _ => i += 1,
                    }
                    if level == 0 {
                        break;
                    }
                }
            }
            'r' | 'b' if raw_hashes(&c, i).is_some() => {
                let (open, hashes) = raw_hashes(&c, i).unwrap();
                i = open + 1;
                while i < c.len() && !(c[i] == '"' && (1..=hashes).all(|k| at(i + k) == '#')) {
                    i += 1;
                }
                tokens.push((line, Token::Text(c[open + 1..i.min(c.len())].iter().collect())));
                i += 1 + hashes;
            }
            '"' => {
                i += 1;
                while i < c.len() && c[i] != '"' {
                    i += 1 + (c[i] == '\\') as usize;
                }
                tokens.push((line, Token::Text(c[start + 1..i.min(c.len())].iter().collect())));
                i += 1;
            }
            // A character literal or a lifetime.
            '\'' => {
                if at(i + 1) == '\\' {
                    i += 3;
                    while i < c.len() && c[i] != '\'' {
                        i += 1;
                    }
                    i += 1;
                } else if at(i + 2) == '\'' {
                    i += 3;
                } else {
                    i += 1;
                }
            }
            x if is_word(x) => {
                while is_word(at(i)) {
                    i += 1;
                }
                tokens.push((line, Token::Word(c[start..i].iter().collect())));
            }
            x => {
                if !x.is_whitespace() {
                    tokens.push((line, Token::Mark(x)));
                }
                i += 1;
            }
        }
        i = i.min(c.len());
        line += c[start..i].iter().filter(|&&x| x == '\n').count();
    }
    tokens
}

/// Where the quote of a raw string stands that begins at `i`, and its number of hashes.
fn raw_hashes(c: &[char], i: usize) -> Option<(usize, usize)> {
    if i > 0 && (c[i - 1].is_alphanumeric() || c[i - 1] == '_') {
        return None;
    }
    let r = i + (c[i] == 'b') as usize;
    if c.get(r) != Some(&'r') {
        return None;
    }
    let hashes = c[r + 1..].iter().take_while(|&&x| x == '#').count();
    (c.get(r + 1 + hashes) == Some(&'"')).then_some((r + 1 + hashes, hashes))
}

/// Marks the tokens of every item behind `#[cfg(test)]`.
fn test_items(tokens: &[(usize, Token)]) -> Vec<bool> {
    let mark = |i: usize, m: char| matches!(tokens.get(i), Some((_, Token::Mark(x))) if *x == m);
    let word = |i: usize, w: &str| matches!(tokens.get(i), Some((_, Token::Word(x))) if x == w);
    let mut test = vec![false; tokens.len()];
    for i in 0..tokens.len() {
        if !(mark(i, '#') && mark(i + 1, '[') && word(i + 2, "cfg") && mark(i + 3, '(') && word(i + 4, "test")) {
            continue;
        }
        let (mut level, mut at) = (0, i + 7);
        while at < tokens.len() {
            level += mark(at, '{') as i32 - mark(at, '}') as i32;
            at += 1;
            if level == 0 && (mark(at - 1, '}') || mark(at - 1, ';')) {
                break;
            }
        }
        test[i..at].fill(true);
    }
    test
}

#[test]
fn the_lexer_knows_comments_strings_lifetimes_and_tests() {
    let source = Source::of(
        "graph/op.rs",
        "use super::{Node, a::{b, c}}; // crate::no\nfn f<'a>(x: &'a str) { '\"'; r#\"a\"b\"#; crate::tensor::X; \"q\\\"\"; super::super::math::y }\n#[cfg(test)] mod tests { use super::super::super::{quant::Z, range}; }",
    );
    let texts: Vec<_> = source.tokens.iter().filter(|t| matches!(t.1, Token::Text(_))).map(|t| &t.1).collect();
    assert_eq!(texts, [&Token::Text("a\"b".into()), &Token::Text("q\\\"".into())]);
    assert_eq!(source.root_paths().iter().map(|p| p.1).collect::<Vec<_>>(), ["tensor", "math", "quant", "range"]);
    let first_test = source.test.iter().position(|&t| t).unwrap();
    assert_eq!(source.tokens[first_test].0, 3);
    assert!(*source.test.last().unwrap());
}
