//! Search filters, RFC 4515: checked once with the column of the mistake, filled with escaped values, joined.
//! Pure.

use std::fmt::Write as _;

use crate::identity::Login;

/// How deep filters may nest.
const MAX_DEPTH: usize = 50;

/// A filter that was checked: outer brackets, no blanks between its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Box<str>);

/// Where a filter is wrong, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {expected}")]
pub struct FilterError {
    /// The character, counted from 1.
    pub column: usize,
    /// What should stand there.
    pub expected: &'static str,
}

impl Filter {
    /// Checks a filter as written. Missing outer brackets are added; an empty group (`(|)`, `()`) is refused.
    ///
    /// # Errors
    /// The column of the first mistake.
    ///
    /// ```
    /// use gatepost::directory::filter::Filter;
    /// assert_eq!(Filter::parse("uid=fry").unwrap().as_str(), "(uid=fry)");
    /// assert_eq!(Filter::parse("(&(uid=fry)(|))").unwrap_err().column, 14);
    /// ```
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut scan = Scan { rest: text.trim_end(), column: 1, output: String::new() };
        scan.skip_blanks();
        if scan.rest.is_empty() {
            return scan.fail("a filter");
        }
        if scan.rest.starts_with('(') {
            scan.group(0)?;
        } else {
            scan.output.push('(');
            scan.body(0)?;
            scan.output.push(')');
        }
        scan.skip_blanks();
        if !scan.rest.is_empty() {
            return scan.fail("nothing after the last bracket");
        }
        Ok(Self(scan.output.into()))
    }

    /// `(objectClass=*)`: every entry.
    #[must_use]
    pub fn any() -> Self {
        Self("(objectClass=*)".into())
    }

    /// `(attribute=value)`, the value escaped.
    #[must_use]
    pub fn equals(attribute: &str, value: &str) -> Self {
        Self(format!("({attribute}={})", escape(value)).into())
    }

    /// `(attribute=\xx\xx…)` for a value of bytes.
    #[must_use]
    pub fn equals_bytes(attribute: &str, value: &[u8]) -> Self {
        let mut text = format!("({attribute}=");
        for byte in value {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\{byte:02x}");
        }
        text.push(')');
        Self(text.into())
    }

    /// Both must match.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(format!("(&{}{})", self.0, other.0).into())
    }

    /// Any of them must match; `None` of none.
    #[must_use]
    pub fn any_of(filters: &[Self]) -> Option<Self> {
        match filters {
            [] => None,
            [one] => Some(one.clone()),
            many => {
                let all: String = many.iter().map(Self::as_str).collect();
                Some(Self(format!("(|{all})").into()))
            }
        }
    }

    /// RFC 4515 text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A filter with `{user}`, `{local}` and `{domain}` in its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginFilter(Filter);

impl LoginFilter {
    /// Checks the template: a filter, only known placeholders, and `{user}` or `{local}` among them (else everybody
    /// would be found).
    ///
    /// # Errors
    /// The column of the first mistake.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let filter = Filter::parse(text)?;
        let mut names_somebody = false;
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let column = column_of(text, before, rest);
            let (name, after) =
                after.split_once('}').ok_or(FilterError { column, expected: PLACEHOLDER })?;
            match name {
                "user" | "local" => names_somebody = true,
                "domain" => {}
                _ => return Err(FilterError { column, expected: PLACEHOLDER }),
            }
            rest = after;
        }
        if !names_somebody {
            return Err(FilterError { column: 1, expected: "{user} or {local} somewhere" });
        }
        Ok(Self(filter))
    }

    /// Fills the placeholders with escaped values.
    #[must_use]
    pub fn fill(&self, login: &Login) -> Filter {
        let mut output = String::new();
        let mut rest = self.0.as_str();
        // One pass: what was filled in is not looked at again.
        while let Some((before, after)) = rest.split_once('{') {
            output.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            output.push_str(&match name {
                "user" => escape(login.address.as_str()),
                "local" => escape(login.address.local()),
                _ => escape(login.address.domain().as_str()),
            });
            rest = after;
        }
        output.push_str(rest);
        Filter(output.into())
    }
}

const PLACEHOLDER: &str = "{user}, {local} or {domain}";

fn column_of(text: &str, before: &str, rest: &str) -> usize {
    let consumed = text.len() - rest.len() + before.len();
    text.get(..consumed).unwrap_or_default().chars().count() + 1
}

/// Escapes a value for a filter (RFC 4515 §3): `\ * ( )`, NUL and other control bytes.
#[must_use]
pub fn escape(value: &str) -> String {
    let mut output = String::with_capacity(value.len());
    for character in value.chars() {
        if matches!(character, '\\' | '*' | '(' | ')') || character.is_ascii_control() {
            let _ = write!(output, "\\{:02x}", u32::from(character));
        } else {
            output.push(character);
        }
    }
    output
}

/// A walk over the text that writes the normal form.
struct Scan<'a> {
    rest: &'a str,
    column: usize,
    output: String,
}

impl Scan<'_> {
    fn fail<T>(&self, expected: &'static str) -> Result<T, FilterError> {
        Err(FilterError { column: self.column, expected })
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Moves on by one character without writing it.
    fn skip(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let character = characters.next()?;
        self.rest = characters.as_str();
        self.column += 1;
        Some(character)
    }

    /// Moves on by one character and writes it.
    fn take(&mut self) -> Option<char> {
        let character = self.skip()?;
        self.output.push(character);
        Some(character)
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.skip();
        }
    }

    /// `( body )`
    fn group(&mut self, depth: usize) -> Result<(), FilterError> {
        if self.peek() != Some('(') {
            return self.fail("an opening bracket");
        }
        if depth > MAX_DEPTH {
            return self.fail("fewer brackets within each other");
        }
        self.take();
        self.skip_blanks();
        self.body(depth)?;
        if self.peek() != Some(')') {
            return self.fail("a closing bracket");
        }
        self.take();
        Ok(())
    }

    fn body(&mut self, depth: usize) -> Result<(), FilterError> {
        match self.peek() {
            Some('&' | '|') => {
                self.take();
                self.skip_blanks();
                // RFC 4526's empty (&) and (|) are refused: more often a slip than meant.
                if self.peek() != Some('(') {
                    return self.fail("at least one condition in the group");
                }
                while self.peek() == Some('(') {
                    self.group(depth + 1)?;
                    self.skip_blanks();
                }
                Ok(())
            }
            Some('!') => {
                self.take();
                self.skip_blanks();
                self.group(depth + 1)?;
                self.skip_blanks();
                Ok(())
            }
            Some(')') | None => self.fail("a condition such as (mail=*)"),
            Some(_) => self.item(),
        }
    }

    /// `attribute=value`, `>=`, `<=`, `~=`, `attribute:rule:=value`.
    fn item(&mut self) -> Result<(), FilterError> {
        let named = self.attribute();
        let kind = match self.peek() {
            Some('>' | '<' | '~') if named => {
                self.take();
                Kind::Plain
            }
            Some(':') => {
                self.rule()?;
                Kind::Plain
            }
            _ if named => Kind::Stars,
            _ => return self.fail("an attribute's name"),
        };
        if self.peek() != Some('=') {
            return self.fail("= and a value");
        }
        self.take();
        self.value(kind)
    }

    /// A name or OID with options; whether there was one.
    fn attribute(&mut self) -> bool {
        let start = self.output.len();
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || "-._;".contains(c)) {
            self.take();
        }
        self.output.len() > start
    }

    /// `:dn`, `:rule`, up to the `:` before the `=`.
    fn rule(&mut self) -> Result<(), FilterError> {
        while self.peek() == Some(':') {
            self.take();
            if self.peek() == Some('=') {
                return Ok(());
            }
            if !self.attribute() {
                return self.fail("a matching rule such as 1.2.840.113556.1.4.803");
            }
        }
        self.fail(":=")
    }

    fn value(&mut self, kind: Kind) -> Result<(), FilterError> {
        let mut star_before = false;
        while let Some(character) = self.peek() {
            match character {
                ')' => break,
                '(' => {
                    return self
                        .fail("a closing bracket (brackets in values are written \\28, \\29)");
                }
                '\0' => return self.fail("no NUL (it is written \\00)"),
                '*' if kind == Kind::Plain => return self.fail("no * here (it is written \\2a)"),
                '*' if star_before => return self.fail("a single *"),
                '\\' => self.escaped()?,
                _ => {
                    self.take();
                }
            }
            star_before = character == '*';
        }
        Ok(())
    }

    fn escaped(&mut self) -> Result<(), FilterError> {
        self.take();
        for _ in 0..2 {
            if !self.peek().is_some_and(|c| c.is_ascii_hexdigit()) {
                return self.fail("two hexadecimal digits after \\");
            }
            self.take();
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No `*` in the value.
    Plain,
    /// `*` stands for anything.
    Stars,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Case, LoginRules};

    #[test]
    fn good_filters_take_one_form_that_the_client_library_takes_too() {
        for (text, normal) in [
            ("uid=fry", "(uid=fry)"),
            (" (mail=*) ", "(mail=*)"),
            ("(&(objectClass=person)(!(memberOf=cn=ship_crew,ou=people,dc=x)))", ""),
            ("(& (a=1)\n  (| (b=2) (c=3) ) )", "(&(a=1)(|(b=2)(c=3)))"),
            ("&(a=1)(b=2)", "(&(a=1)(b=2))"),
            ("(!(userAccountControl:1.2.840.113556.1.4.803:=2))", ""),
            ("(:caseExactMatch:=x)", ""),
            ("(cn:dn:2.5.13.5:=x)", ""),
            ("(cn=a*b*c)", ""),
            ("(cn=\\2a\\28\\29\\5c)", ""),
            ("(cn=Blank inside, and ümlaut )", ""),
            ("(a>=1)", ""),
            ("(a~=1)", ""),
            ("(a=)", ""),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!(filter.as_str(), if normal.is_empty() { text } else { normal });
            assert!(ldap3::parse_filter(filter.as_str()).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_bad_filter_is_refused_at_its_column() {
        for (text, column) in [
            ("", 1),
            ("()", 2),
            ("(|)", 3),
            ("(&(a=1)(|))", 10),
            ("(a=1", 5),
            ("(a=1))", 6),
            ("(a=1)(b=2)", 6),
            ("(a)", 3),
            ("(=x)", 2),
            ("(!a=1)", 3),
            ("(!(a=1)(b=2))", 8),
            ("(a=\\2)", 6),
            ("(a=(b))", 4),
            ("(a>=b*)", 6),
            ("(a=b**c)", 6),
            ("(ä=1)", 2),
        ] {
            assert_eq!(Filter::parse(text).map_err(|e| e.column), Err(column), "{text}");
        }
        let deep = format!("{}(a=1){}", "(!".repeat(200), ")".repeat(200));
        assert!(Filter::parse(&deep).is_err());
    }

    fn login(typed: &str) -> Login {
        let rules = LoginRules {
            default_domain: None,
            case: Case::Fold,
            separator: Box::default(),
            alias_domains: std::collections::BTreeMap::new(),
        };
        Login::parse(typed.as_bytes(), &rules).unwrap()
    }

    #[test]
    fn hostile_names_stay_inside_their_value() {
        let template = LoginFilter::parse("(|(mail={user})(&(uid={local})(o={domain})))").unwrap();

        let filled = template.fill(&login("*)(uid=*\\{domain}@x.org"));

        assert_eq!(
            filled.as_str(),
            "(|(mail=\\2a\\29\\28uid=\\2a\\5c{domain}@x.org)(&(uid=\\2a\\29\\28uid=\\2a\\5c{domain})(o=x.org)))"
        );
        assert!(ldap3::parse_filter(filled.as_str()).is_ok());
    }

    #[test]
    fn a_login_filter_names_somebody() {
        for (text, column) in
            [("(mail=*)", 1), ("(o={domain})", 1), ("(mail={usr})", 7), ("(mail={user)", 7)]
        {
            assert_eq!(LoginFilter::parse(text).map_err(|e| e.column), Err(column), "{text}");
        }
    }
}
