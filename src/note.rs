//! What a step has to say: what it changed, what it declined, where it fell back. Never silence.

use std::fmt::{self, Display};

/// One remark of one step about one place.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Note {
    pub kind: NoteKind,
    /// The step that speaks, as the recipe spells it.
    pub step: &'static str,
    /// The node or tensor it speaks of, by its name in the input file; empty for the whole model.
    pub about: String,
    /// One sentence: what, and why.
    pub text: String,
}

/// Fall-backs are counted in the report, and are errors under `--strict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// Something was done.
    Changed,
    /// Something could have been done and was not, for the reason given.
    Declined,
    /// Something that was asked for could not be done; the nearest was.
    FellBack,
}

impl NoteKind {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            NoteKind::Changed => "changed",
            NoteKind::Declined => "declined",
            NoteKind::FellBack => "fell back",
        }
    }
}

/// Remarks of one step, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Notes {
    step: &'static str,
    list: Vec<Note>,
}

impl Notes {
    /// No remarks yet of `step`.
    pub fn of(step: &'static str) -> Self {
        Notes { step, list: Vec::new() }
    }

    fn push(&mut self, kind: NoteKind, about: impl Display, text: impl Display) {
        self.list.push(Note { kind, step: self.step, about: about.to_string(), text: text.to_string() });
    }

    pub fn changed(&mut self, about: impl Display, text: impl Display) {
        self.push(NoteKind::Changed, about, text);
    }

    pub fn declined(&mut self, about: impl Display, text: impl Display) {
        self.push(NoteKind::Declined, about, text);
    }

    /// The same remark of several, told of the first. `text` is given what says how many more there are: empty, or ` (and 2 more)`.
    pub fn declined_alike(&mut self, about: &[String], text: impl FnOnce(&str) -> String) {
        if let [first, others @ ..] = about {
            let more = if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
            self.declined(first, text(&more));
        }
    }

    pub fn fell_back(&mut self, about: impl Display, text: impl Display) {
        self.push(NoteKind::FellBack, about, text);
    }

    pub fn list(&self) -> &[Note] {
        &self.list
    }

    pub fn append(&mut self, other: Notes) {
        self.list.extend(other.list);
    }

    pub fn count(&self, kind: NoteKind) -> usize {
        self.list.iter().filter(|n| n.kind == kind).count()
    }
}

impl Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = match self.kind {
            NoteKind::Changed => "",
            NoteKind::Declined => "declined: ",
            NoteKind::FellBack => "fell back: ",
        };
        match self.about.as_str() {
            "" => write!(f, "{}: {kind}{}", self.step, self.text),
            about => write!(f, "{}: {about}: {kind}{}", self.step, self.text),
        }
    }
}
