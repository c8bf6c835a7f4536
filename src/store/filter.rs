//! `perplexity < 30 and model ~ int4`: a filter's words to SQL with parameters.
//!
//! ```text
//! or   = and {"or" and}        not = "not" not | "(" or ")" | name op value
//! and  = not {"and" not}       op  = < <= > >= = == != ~
//! ```
//! A name is a field, a metric or a metric's unit; it may have spaces (`mean KL < 0.1`). `~` means "contains". No word of a person
//! becomes SQL: names are looked up, values are parameters.

use rusqlite::types::Value as Sql;

use super::RunStore;
use super::names::{Names, Reference};
use crate::error::Error;

/// Why a query could not be answered.
#[derive(Debug)]
pub(super) enum Problem {
    /// It asks for something that is not there, or cannot be read.
    Words(Error),
    Sql(rusqlite::Error),
}

impl Problem {
    pub(super) fn at(self, store: &RunStore) -> Error {
        match self {
            Problem::Words(error) => error,
            Problem::Sql(error) => store.fault(&error),
        }
    }
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Problem {
        Problem::Sql(error)
    }
}

/// A condition with its parameters, in their order.
#[derive(Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) sql: String,
    pub(super) values: Vec<Sql>,
}

/// Brackets and `not`s within one another beyond this are a slip or an attack.
const DEEPEST: usize = 50;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Op(&'static str),
    Open,
    Close,
}

/// Reads `filter`; an empty one lets everything through.
pub(super) fn condition(filter: &str, names: &Names) -> Result<Condition, Problem> {
    let tokens = lex(filter)?;
    let mut reader = Reader { tokens, at: 0, names, values: Vec::new(), depth: 0 };
    if reader.tokens.is_empty() {
        return Ok(Condition { sql: "1".to_owned(), values: Vec::new() });
    }
    let sql = reader.any()?;
    match reader.next() {
        None => Ok(Condition { sql, values: reader.values }),
        Some(token) => {
            Err(wrong(&format!("{} stands where `and` or `or` is wanted", said(&token))))
        }
    }
}

fn wrong(words: &str) -> Problem {
    Problem::Words(Error::usage(format!(
        "the filter: {words}; write as in 'perplexity < 30 and model ~ int4'"
    )))
}

fn said(token: &Token) -> String {
    match token {
        Token::Word(word) | Token::Quoted(word) => format!("{word:?}"),
        Token::Op(op) => (*op).to_owned(),
        Token::Open => "(".to_owned(),
        Token::Close => ")".to_owned(),
    }
}

fn lex(filter: &str) -> Result<Vec<Token>, Problem> {
    const OPS: [&str; 8] = ["<=", ">=", "==", "!=", "<", ">", "=", "~"];
    let mut tokens = Vec::new();
    let mut rest = filter.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if let Some(op) = OPS.into_iter().find(|op| rest.starts_with(op)) {
            tokens.push(Token::Op(op));
            op.len()
        } else if first == '(' || first == ')' {
            tokens.push(if first == '(' { Token::Open } else { Token::Close });
            1
        } else if first == '"' || first == '\'' {
            let inside = &rest[1..];
            let end = inside.find(first).ok_or_else(|| wrong("a quote is not closed"))?;
            tokens.push(Token::Quoted(inside[..end].to_owned()));
            end + 2
        } else {
            let ends = |c: char| c.is_whitespace() || "<>=!~()\"'".contains(c);
            let end = rest.find(ends).unwrap_or(rest.len());
            if end == 0 {
                return Err(wrong(&format!("{first:?} stands alone")));
            }
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        };
        rest = rest[taken..].trim_start();
    }
    Ok(tokens)
}

struct Reader<'a> {
    tokens: Vec<Token>,
    at: usize,
    names: &'a Names,
    values: Vec<Sql>,
    depth: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Takes the next word if it is this one.
    fn takes(&mut self, wanted: &str) -> bool {
        let word = matches!(self.tokens.get(self.at), Some(Token::Word(word)) if word.eq_ignore_ascii_case(wanted));
        self.at += usize::from(word);
        word
    }

    fn any(&mut self) -> Result<String, Problem> {
        let mut sql = self.all()?;
        while self.takes("or") {
            sql = format!("({sql} OR {})", self.all()?);
        }
        Ok(sql)
    }

    fn all(&mut self) -> Result<String, Problem> {
        let mut sql = self.one()?;
        while self.takes("and") {
            sql = format!("({sql} AND {})", self.one()?);
        }
        Ok(sql)
    }

    fn one(&mut self) -> Result<String, Problem> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(wrong("it is nested too deeply"));
        }
        let sql = if self.takes("not") {
            format!("NOT {}", self.one()?)
        } else if self.tokens.get(self.at) == Some(&Token::Open) {
            self.at += 1;
            let inside = self.any()?;
            if self.next() != Some(Token::Close) {
                return Err(wrong("a ( is not closed"));
            }
            format!("({inside})")
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(sql)
    }

    fn comparison(&mut self) -> Result<String, Problem> {
        let mut words = Vec::new();
        let op = loop {
            match self.next() {
                Some(Token::Word(word) | Token::Quoted(word)) => words.push(word),
                Some(Token::Op(op)) if !words.is_empty() => break op,
                Some(token) => {
                    return Err(wrong(&format!("{} stands where a name is wanted", said(&token))));
                }
                None if words.is_empty() => return Err(wrong("it ends where a name is wanted")),
                None => {
                    return Err(wrong(&format!("{:?} is compared with nothing", words.join(" "))));
                }
            }
        };
        let reference = self.names.find(&words.join(" "))?;
        let value = match self.next() {
            Some(Token::Word(word) | Token::Quoted(word)) => word,
            _ => return Err(wrong(&format!("nothing stands after {} {op}", words.join(" ")))),
        };
        self.compare(&reference, op, &value, &words.join(" "))
    }

    fn compare(
        &mut self,
        reference: &Reference,
        op: &'static str,
        value: &str,
        name: &str,
    ) -> Result<String, Problem> {
        let sql_op = if op == "==" { "=" } else { op };
        let number = || {
            value
                .parse::<f64>()
                .map(Sql::Real)
                .map_err(|_| wrong(&format!("{name} is a number, and {value:?} is none")))
        };
        match reference {
            Reference::Text(column) if op == "~" => {
                self.values.push(Sql::Text(value.to_lowercase()));
                Ok(format!("instr(lower(runs.{column}), ?) > 0"))
            }
            Reference::Text(column) if matches!(sql_op, "=" | "!=") => {
                self.values.push(Sql::Text(value.to_owned()));
                Ok(format!("runs.{column} {sql_op} ?"))
            }
            Reference::Text(_) => Err(wrong(&format!("{name} is a text: it takes =, != or ~"))),
            _ if op == "~" => {
                Err(wrong(&format!("{name} is a number: it takes < <= > >= = or !=")))
            }
            Reference::Number(column) => {
                self.values.push(number()?);
                Ok(format!("runs.{column} {sql_op} ?"))
            }
            Reference::Metrics(ids) => {
                self.values.extend(ids.iter().map(|id| Sql::Integer(*id)));
                self.values.push(number()?);
                let marks = vec!["?"; ids.len()].join(", ");
                Ok(format!(
                    "EXISTS (SELECT 1 FROM metrics WHERE metrics.run = runs.id AND \
                     metrics.name IN ({marks}) AND metrics.value {sql_op} ?)"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(filter: &str) -> String {
        let names =
            Names::of(&[(1, "perplexity", ""), (2, "speed", "tok/s"), (3, "mean KL", "nat")]);
        match condition(filter, &names) {
            Ok(found) => {
                let sql =
                    found.sql.replace("SELECT 1 FROM metrics WHERE metrics.run = runs.id AND ", "");
                format!("{sql} {:?}", found.values)
            }
            Err(Problem::Words(error)) => format!("! {error}"),
            Err(Problem::Sql(error)) => format!("!! {error}"),
        }
    }

    #[test]
    fn filters_become_conditions_with_parameters() {
        let metric = |id: i64, op: &str| {
            format!("EXISTS (metrics.name IN (?) AND metrics.value {op} ?) [Integer({id}), ")
        };
        for (filter, wanted) in [
            ("", "1 []".to_owned()),
            ("perplexity<30", metric(1, "<") + "Real(30.0)]"),
            ("mean KL >= 1e-3", metric(3, ">=") + "Real(0.001)]"),
            ("\"mean KL\" == 2", metric(3, "=") + "Real(2.0)]"),
            ("tok/s != 5", metric(2, "!=") + "Real(5.0)]"),
            ("speed (tok/s) > 5", "! ".to_owned()),
            ("model ~ INT4", "instr(lower(runs.subject), ?) > 0 [Text(\"int4\")]".to_owned()),
            (
                "not (id = 1 or id = 2) and seed = 0",
                "(NOT ((runs.id = ? OR runs.id = ?)) AND runs.seed = ?) [Real(1.0), Real(2.0), Real(0.0)]".to_owned(),
            ),
        ] {
            assert!(sql(filter).starts_with(&wanted), "{filter}: {}", sql(filter));
        }
    }

    #[test]
    fn nothing_that_is_typed_becomes_sql() {
        for value in ["x'; DROP TABLE runs; --", "1) OR 1=1 --", "?", "runs.id"] {
            let found = sql(&format!("model = \"{value}\""));
            assert!(found.starts_with("runs.subject = ? [Text("), "{found}");
        }
        assert!(sql("1=1").starts_with("! the run store has no metric or field \"1\""));
    }

    #[test]
    fn mistakes_are_told() {
        for (filter, part) in [
            ("perplexty < 3", "did you mean \"perplexity\"?"),
            ("perplexity", "compared with nothing"),
            ("perplexity <", "nothing stands after perplexity <"),
            ("perplexity < x", "\"x\" is none"),
            ("model < 3", "=, != or ~"),
            ("perplexity ~ 3", "is a number"),
            ("(perplexity < 3", "not closed"),
            ("perplexity < 3 4", "`and` or `or`"),
            ("< 3", "a name is wanted"),
            ("model = 'x", "a quote is not closed"),
            ("perplexity ! 3", "stands alone"),
        ] {
            assert!(sql(filter).contains(part), "{filter}: {}", sql(filter));
        }
        assert!(sql(&"(".repeat(100_000)).contains("nested too deeply"));
        assert!(sql(&"not ".repeat(100_000)).contains("nested too deeply"));
    }
}
