//! Words of an expression.

use std::sync::Arc;

use meta::Str;

use crate::CompileError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(Str),
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    /// An operator or bracket.
    Sign(&'static str),
    End,
}

/// Longest first.
const SIGNS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// Takes a text apart; each token with the place where it begins.
pub fn tokens(text: &str) -> Result<Vec<(Token, usize)>, CompileError> {
    let mut reader = Reader { text, at: 0 };
    let mut all = Vec::new();
    loop {
        reader.skip_space();
        let at = reader.at;
        let token = reader.token()?;
        let end = token == Token::End;
        all.push((token, at));
        if end {
            return Ok(all);
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error<T>(&self, what: &str) -> Result<T, CompileError> {
        Err(CompileError::at(self.text, self.at, format!("Syntax error: {what}")))
    }

    fn skip_space(&mut self) {
        loop {
            let trimmed = self.rest().trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
            self.at = self.text.len() - trimmed.len();
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn token(&mut self) -> Result<Token, CompileError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(token) = self.string()? {
            return Ok(token);
        }
        let rest = self.rest();
        if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
            let word = Str::from(&rest[..length]);
            self.at += length;
            return Ok(Token::Ident(word));
        }
        if first == '`' {
            let Some(end) = rest[1..].find('`') else { return self.error("an escaped name has no end") };
            let word = Str::from(&rest[1..=end]);
            self.at += end + 2;
            return Ok(Token::Ident(word));
        }
        let second = rest.as_bytes().get(1).copied().unwrap_or(0);
        if first.is_ascii_digit() || first == '.' && second.is_ascii_digit() {
            return self.number();
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => self.error(&format!("token recognition error at: {first:?}")),
        }
    }

    fn number(&mut self) -> Result<Token, CompileError> {
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let length = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
            let Ok(number) = u64::from_str_radix(&hex[..length], 16) else { return self.error("invalid number") };
            let is_uint = hex[length..].starts_with(['u', 'U']);
            self.at += 2 + length + usize::from(is_uint);
            return Ok(if is_uint { Token::Uint(number) } else { Token::Int(number) });
        }
        let bytes = rest.as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut length = digits(0);
        let mut is_double = false;
        if bytes.get(length) == Some(&b'.') && bytes.get(length + 1).is_some_and(u8::is_ascii_digit) {
            is_double = true;
            length += 1 + digits(length + 1);
        }
        if matches!(bytes.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
            let exponent = digits((length + 1 + sign).min(bytes.len()));
            if exponent > 0 {
                is_double = true;
                length += 1 + sign + exponent;
            }
        }
        let word = &rest[..length];
        if is_double {
            let Ok(number) = word.parse() else { return self.error("invalid number") };
            self.at += length;
            return Ok(Token::Double(number));
        }
        let Ok(number) = word.parse() else { return self.error("invalid number") };
        let is_uint = rest[length..].starts_with(['u', 'U']);
        self.at += length + usize::from(is_uint);
        Ok(if is_uint { Token::Uint(number) } else { Token::Int(number) })
    }

    /// A string or bytes literal, if one begins here.
    fn string(&mut self) -> Result<Option<Token>, CompileError> {
        let rest = self.rest();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let prefix = rest[..letters].to_ascii_lowercase();
        if !matches!(prefix.as_str(), "" | "r" | "b" | "rb" | "br") || !rest[letters..].starts_with(['"', '\'']) {
            return Ok(None);
        }
        let (raw, bytes) = (prefix.contains('r'), prefix.contains('b'));
        let body = &rest[letters..];
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(quote)).unwrap_or("'");
        let inner = &body[quote.len()..];
        let mut end = 0;
        loop {
            let left = &inner[end..];
            match left.chars().next() {
                None => return self.error("a string has no end"),
                Some('\n') if quote.len() == 1 => return self.error("a string has no end"),
                Some('\\') if !raw => end += 1 + left[1..].chars().next().map_or(0, char::len_utf8),
                Some(_) if left.starts_with(quote) => break,
                Some(c) => end += c.len_utf8(),
            }
        }
        let content = &inner[..end];
        let decoded = if raw { Some(content.as_bytes().to_vec()) } else { unescape(content, bytes) };
        let Some(decoded) = decoded else { return self.error("invalid escape sequence") };
        let token = if bytes {
            Token::Bytes(decoded.into())
        } else {
            match String::from_utf8(decoded) {
                Ok(text) => Token::Text(text.into()),
                Err(_) => return self.error("invalid escape sequence"),
            }
        };
        self.at += letters + 2 * quote.len() + end;
        Ok(Some(token))
    }
}

/// Replaces escapes; `\x` and octal ones are bytes in bytes literals and characters in strings.
fn unescape(text: &str, bytes: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = chars.next()?;
        let mut number = |first: u32, count: usize, radix: u32| -> Option<u32> {
            (0..count)
                .try_fold(first, |number, _| number.checked_mul(radix)?.checked_add(chars.next()?.to_digit(radix)?))
        };
        let code = match escape {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => u32::from(escape),
            'x' | 'X' => number(0, 2, 16)?,
            'u' if !bytes => number(0, 4, 16)?,
            'U' if !bytes => number(0, 8, 16)?,
            '0'..='3' => number(escape.to_digit(8)?, 2, 8)?,
            _ => return None,
        };
        if bytes && code < 256 {
            out.push(code as u8);
        } else {
            out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(out)
}
