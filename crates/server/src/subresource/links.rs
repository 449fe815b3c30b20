//! Links of pages that are shown through a proxy: what points to the root of the page's server is led back through the
//! proxy, in `Location` headers and in HTML. The rules are those of upstream's proxy transport
//! (`apimachinery/pkg/util/proxy/transport.go`).

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use html5gum::{DefaultEmitter, Token, Tokenizer};
use http::{HeaderMap, HeaderValue, header};

/// A page that is longer, packed or not, goes as it is.
pub const PAGE_MAX_BYTES: usize = 4 << 20;

/// The attributes that hold links, by tag.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// How links of one page are led.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of the proxy, as in `/api/v1/namespaces/a/pods/b/proxy`.
    pub prefix: String,
    /// The page's server, by the address it is dialed at and by the name that the client used.
    pub hosts: Vec<String>,
}

impl Links {
    /// The link as the client must follow it, where that differs.
    fn led(&self, link: &str) -> Option<String> {
        let (scheme, rest) = match link.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => (scheme, rest),
            _ => ("", link.strip_prefix("//").unwrap_or(link)),
        };
        let foreign = scheme.is_empty() && rest.len() == link.len();
        let (host, rest) = match foreign {
            true => ("", rest),
            false => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
        };
        let elsewhere = !host.is_empty() && !self.hosts.iter().any(|own| own == host);
        let (path, more) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        if elsewhere || !path.starts_with('/') {
            return None;
        }
        // What the page's server wrote of the proxy itself is right already.
        if scheme.is_empty() && host.is_empty() && path.starts_with(&self.prefix) {
            return None;
        }
        Some(format!("{}{}{more}", self.prefix, clean(path)))
    }

    /// Leads the place that an answer sends its client to.
    pub fn lead_header(&self, headers: &mut HeaderMap) {
        let place = headers.get(header::LOCATION).and_then(|place| place.to_str().ok());
        if let Some(Ok(led)) = place.and_then(|place| self.led(place)).map(|led| HeaderValue::from_str(&led)) {
            headers.insert(header::LOCATION, led);
        }
    }

    /// The page with its links led; `None` where it stays as it is.
    pub fn lead_page(&self, headers: &HeaderMap, page: &[u8]) -> Option<Vec<u8>> {
        match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"") => self.lead_html(page),
            Some(b"gzip") => {
                let (mut plain, most) = (Vec::new(), PAGE_MAX_BYTES as u64);
                GzDecoder::new(page).take(most + 1).read_to_end(&mut plain).ok()?;
                if plain.len() > PAGE_MAX_BYTES {
                    return None;
                }
                let led = self.lead_html(&plain)?;
                let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
                packed.write_all(&led).ok()?;
                packed.finish().ok()
            }
            Some(_) => None,
        }
    }

    fn lead_html(&self, page: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut copied) = (Vec::with_capacity(page.len() + page.len() / 8), 0);
        let mut emitter = DefaultEmitter::<usize>::new_with_span();
        emitter.naively_switch_states(true);
        for token in Tokenizer::new_with_emitter(page, emitter) {
            let Ok(Token::StartTag(mut tag)) = token else { continue };
            let Some((_, names)) = LINKS.iter().find(|(name, _)| name.as_bytes() == &**tag.name) else { continue };
            let mut changed = false;
            for name in *names {
                let Some(link) = tag.attributes.get_mut(name.as_bytes()) else { continue };
                if let Some(led) = std::str::from_utf8(link).ok().and_then(|link| self.led(link)) {
                    link.value = led.into_bytes().into();
                    changed = true;
                }
            }
            let (Some(before), true) = (page.get(copied..tag.span.start), changed) else { continue };
            out.extend_from_slice(before);
            out.push(b'<');
            out.extend_from_slice(&tag.name);
            for (name, value) in &tag.attributes {
                out.push(b' ');
                out.extend_from_slice(name);
                out.extend_from_slice(b"=\"");
                for byte in value.iter() {
                    match byte {
                        b'&' => out.extend_from_slice(b"&amp;"),
                        b'"' => out.extend_from_slice(b"&#34;"),
                        b'<' => out.extend_from_slice(b"&lt;"),
                        b'>' => out.extend_from_slice(b"&gt;"),
                        other => out.push(*other),
                    }
                }
                out.push(b'"');
            }
            out.extend_from_slice(if tag.self_closing { b"/>" } else { b">" });
            copied = tag.span.end;
        }
        if copied == 0 {
            return None;
        }
        out.extend_from_slice(page.get(copied..).unwrap_or_default());
        Some(out)
    }
}

/// A path without `.`, `..` and doubled slashes; a slash at its end stays.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links { prefix: "/api/v1/pods/x/proxy".into(), hosts: vec!["10.0.0.1:80".into(), "api:6443".into()] }
    }

    #[test]
    fn what_points_to_the_servers_root_goes_through_the_proxy() {
        let same = |link: &str| assert_eq!(links().led(link), None, "{link}");
        for link in ["a/b", "", "#top", "?q", "http://other/a", "//other/a", "mailto:a@b", "http://10.0.0.1:80"] {
            same(link);
        }
        same("/api/v1/pods/x/proxy/a");
        for (link, led) in [
            ("/rewriteme", "/api/v1/pods/x/proxy/rewriteme"),
            ("/", "/api/v1/pods/x/proxy/"),
            ("/a//b/../c/?q=/#d", "/api/v1/pods/x/proxy/a/c/?q=/#d"),
            ("http://10.0.0.1:80/a", "/api/v1/pods/x/proxy/a"),
            ("//api:6443/a", "/api/v1/pods/x/proxy/a"),
        ] {
            assert_eq!(links().led(link).as_deref(), Some(led), "{link}");
        }
    }

    #[test]
    fn pages_keep_all_but_their_links() {
        let page = "<!doctype html><a href=\"/a?b&amp;c\" class=x>t</a><!-- <a href='/no'> --><script>\
            \"<a href='/no'>\"</script><img src='/i.png'/><p>&lt;";
        let led = "<!doctype html><a class=\"x\" href=\"/api/v1/pods/x/proxy/a?b&amp;c\">t</a><!-- <a href='/no'> -->\
            <script>\"<a href='/no'>\"</script><img src=\"/api/v1/pods/x/proxy/i.png\"/><p>&lt;";
        let mut headers = HeaderMap::new();
        let found = links().lead_page(&headers, page.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(found).unwrap(), led);
        assert_eq!(links().lead_page(&headers, b"<a href=there>"), None);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(page.as_bytes()).unwrap();
        let found = links().lead_page(&headers, &packed.finish().unwrap()).unwrap();
        let mut plain = String::new();
        GzDecoder::new(&*found).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, led);
    }
}
