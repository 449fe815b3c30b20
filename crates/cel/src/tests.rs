//! Expressions as users write them: what they give, and which are refused.

use std::sync::Arc;

use meta::{Value, json};

use crate::{Bound, Env, Fail, Program, Type, Val, escape};

fn object() -> Value {
    json!({"s": "hello", "i": 5, "d": 1.5, "l": [3, 1, 2], "m": {"a": "x"}, "when": "2026-03-01T12:30:00Z", "x-y": 1})
}

fn env() -> Env {
    let text = || Type::String(Bound(400));
    let fields = [
        ("s", text()),
        ("i", Type::Int),
        ("d", Type::Double),
        ("l", Type::List(Arc::new(Type::Int), Bound(10))),
        ("m", Type::Map(Arc::new(Type::STRING), Arc::new(text()), Bound(10))),
        ("when", Type::Timestamp),
        ("none", text()),
        ("endless", Type::list(Type::STRING)),
    ];
    Env::new().with("self", Type::object("self", fields)).with("any", Type::Dyn)
}

fn run(text: &str) -> Result<String, String> {
    let program = Program::compile(text, &env()).map_err(|error| format!("compile: {error}"))?;
    let object = object();
    let value = Val::of(&object, &env().variables["self"]);
    let any = Val::of(&object, &Type::Dyn);
    let mut budget = 100_000;
    match program.evaluate(&[("self", value), ("any", any)], &mut budget) {
        Ok(value) => Ok(match value.to_json() {
            Some(json) => String::from_utf8(json.to_json()).unwrap(),
            None => value.type_name().to_owned(),
        }),
        Err(error) => Err(error.to_string()),
    }
}

#[track_caller]
fn gives(text: &str, expected: &str) {
    assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
}

#[track_caller]
fn fails(text: &str, expected: &str) {
    let error = run(text).expect_err(text);
    assert!(error.contains(expected), "{text}: {error}");
}

#[test]
fn values() {
    gives("1 + 2 * 3 - 4 / 2 % 3", "5");
    gives("-(3) < 2 && !(1 >= 2)", "true");
    gives("self.i == 5 ? 'a' + \"b\" : r'\\n'", "\"ab\"");
    gives("[1, 2] + [3] == [1, 2, 3] && {'a': 1} == {'a': 1} && 1.0 == double(1)", "true");
    gives("self.l.map(x, x > 1, x * 2)", "[6,4]");
    gives("self.l.filter(x, x > 1).size() + self.m.size()", "3");
    gives("self.l.all(i, x, x > i - 1) && self.m.exists(k, v, v == 'x') && self.l.exists_one(x, x == 3)", "true");
    gives("self.l.transformMap(i, x, x + i)", r#"{"0":3,"1":2,"2":4}"#);
    gives(
        "self.l.sort() + self.l.sortBy(x, -x) + self.l.reverse() + [self.l.min(), self.l.max(), self.l.sum()]",
        "[1,2,3,3,2,1,2,1,3,1,3,6]",
    );
    gives("has(self.s) && !has(self.none) && !has(any.zzz) && self.?none.orValue('z') == 'z'", "true");
    gives("self.?s.optMap(x, x.size()).value()", "5");
    gives("[?self.?none, ?self.?s] == ['hello'] && {?'a': self.?none} == {}", "true");
    gives("cel.bind(x, self.i * 2, x + x)", "20");
    gives("any.l[1] + any.i", "6");
    gives("'a' in self.m && 2 in self.l && 's' in any", "true");
    gives("type(self.i) == int && type('a') == string && type([]) != type({})", "true");
    gives("1 < 1.5 && 2u > 1u", "true");
}

#[test]
fn texts_and_formats() {
    gives("'%s has %d of %.1f (%x, %%)'.format([self.s, 3, 2.25, 255])", "\"hello has 3 of 2.2 (ff, %)\"");
    gives("'a,b,c'.split(',', 2).join('-').upperAscii().replace('B', 'x')", "\"A-x,C\"");
    gives("'äöü'.charAt(1) + 'äöü'.substring(1, 2) + string('äöü'.indexOf('ü'))", "\"öö2\"");
    gives("self.s.find('l+') + self.s.findAll('[a-h]').join() + string(self.s.matches('^h'))", "\"llhetrue\"");
    gives("'\\u00e9\\x41\\101\\n' == 'éAA\\n'", "true");
    gives(
        "format.dns1123Label().validate('A').hasValue() && !format.named('uuid').value().validate('x').value().isSorted()",
        "false",
    );
    gives("strings.quote('a\"\\n')", r#""\"a\\\"\\n\"""#);
}

#[test]
fn libraries() {
    gives(
        "self.when.getHours() + self.when.getMonth() + self.when.getHours('+02:00') + duration('90m').getHours()",
        "29",
    );
    gives("self.when + duration('1h30m') - timestamp('2026-03-01T00:00:00Z')", "\"50400s\"");
    gives("url('https://a.b:8443/p?k=1&k=2').getQuery()['k'].size() + int(url('https://a.b:8443/').getPort())", "8445");
    gives(
        "ip('fe80::1').isLinkLocalUnicast() && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !isCIDR('10.0.0.0/33')",
        "true",
    );
    gives("cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && string(cidr('10.0.0.0/8').ip()) == '10.0.0.0'", "true");
    gives("quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('2').add(1).asInteger() == 3", "true");
    gives("semver('1.2.3-rc.1').isLessThan(semver('1.2.3')) && semver('v1.2', true).minor() == 2", "true");
    gives("sets.contains([1, 2], [2]) && sets.intersects(['a'], ['b', 'a']) && sets.equivalent([1, 1], [1])", "true");
}

#[test]
fn what_goes_wrong_is_told() {
    fails("1 / 0", "division by zero");
    fails("9223372036854775807 + 1", "integer overflow");
    fails("self.m['z']", "no such key: z");
    fails("any.zzz.y", "no such key: zzz");
    fails("self.l[7]", "index out of bounds: 7");
    fails("int('x')", "type conversion error");
    fails("self.none == 'a'", "no such key: none");
    fails("'a'.matches('(')", "error parsing regexp");
    gives("any.zzz == 1 || true", "true");
    gives("false && any.zzz == 1", "false");
    gives("[1, 0].exists(x, 2 / x == 2)", "true");
    let endless = "lists.range(1000).map(x, lists.range(1000).map(y, x * y)).size()";
    fails(endless, "actual cost limit exceeded");
}

#[test]
fn what_cannot_be_is_refused() {
    for text in [
        "self.nothing",
        "self.i == 'a'",
        "self.i + 'a'",
        "self.s.bogus()",
        "nobody",
        "[1, 'a']",
        "self.i == 5.0",
        "self.i in ['a']",
        "self.l.map(x, y)",
        "self.i.map(x, x)",
        "self.l.all(x, x)",
        "1 && true",
        "Object{a: 1}",
        "math.least([1])",
        "'a' ? 1 : 2",
        "true ? 1 : 'a'",
        "{1: 'a'}['b']",
    ] {
        fails(text, "compile: ERROR: <input>:");
    }
    let program = Program::compile("JSONPatch{op: 'add', path: '/a', value: Object.spec{b: 1}}", &env().with_patches());
    assert!(program.is_ok());
}

#[test]
fn costs_are_bounded_where_sizes_are() {
    let cost = |text: &str| Program::compile(text, &env()).unwrap().cost();
    assert!(cost("self.l.all(x, self.l.all(y, x < y || self.s == 'a'))") < 10_000);
    assert_eq!(cost("self.endless.all(x, x == 'a')"), u64::MAX);
    // What is written into a list has no known size any more.
    assert!(cost("['a', 'b'].join('-') == 'a-b'") > 1 << 60);
}

#[test]
fn names_are_escaped() {
    for (name, escaped) in [
        ("a", Some("a")),
        ("x-y", Some("x__dash__y")),
        ("a.b/c", Some("a__dot__b__slash__c")),
        ("namespace", Some("__namespace__")),
        ("a__b", Some("a__underscores__b")),
        ("1a", None),
        ("a b", None),
        ("", None),
    ] {
        assert_eq!(escape(name).as_deref(), escaped, "{name}");
    }
}

#[test]
fn any_text_is_compiled_or_refused() {
    let start = "self.l.map(x, x + 1).all(i, y, y > 0 && has(self.s)) ? {'a': [1u, 2.5e3]} : b'\\x00' == r\"x\" || optional.of(self.m).?a";
    let mut rng = base::Rng::new(3);
    for _ in 0..20_000 {
        let mut text: Vec<char> = start.chars().collect();
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(text.len() as u64) as usize;
            match rng.below(3) {
                0 => text[at] = b"()[]{}.?:,'\"\\+-*/%!&|<>=0x"[rng.below(26) as usize].into(),
                1 => {
                    text.remove(at);
                }
                _ => text.insert(at, char::from_u32(rng.below(0x300) as u32).unwrap_or('x')),
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(program) = Program::compile(&text, &env()) {
            let object = object();
            let value = Val::of(&object, &env().variables["self"]);
            let _: Result<Val<'_>, Fail> = program.evaluate(&[("self", value)], &mut 10_000);
        }
    }
}

#[test]
fn idioms_of_definitions_compile_and_hold() {
    for text in [
        "[has(self.s), has(self.none)].exists_one(x, x)",
        "[has(self.s), has(self.none)].filter(x, x == true).size() == 1",
        "self.l.all(a, self.l.exists_one(b, a == b))",
        "(self.l.size() > 0 ? self.l[0] : 0) + (self.l.size() > 5 ? self.l[5] : 0) <= 128",
        "has(self.none) ? has(self.s) : true",
        "!has(self.none) || self.none.size() > 0",
        "!('z' in self.m) && self.m.all(k, k.matches('^[a-z]$') && self.m[k] != '')",
        "self.?none.orValue('').size() == 0 && self.?endless.orValue([]).all(x, x != '')",
        "self == self && self.s in ['hello', 'bye'] && !(self.i in [1, 2])",
        "quantity('10Gi').compareTo(quantity('9Gi')) >= 0",
        "duration('1h30m') >= duration('30m') && size(self.s) == 5 && size(self.m) == 1",
        "self.l.map(x, string(x)).join(',') == '3,1,2' || self.l.isSorted()",
        "self.m == {'a': 'x'} && self.l.filter(x, x > 1).map(x, x * 2).sum() == 10",
        "string(self.i) + 's' == '5s' && int(self.d) == 1 && double(self.i) > self.d",
        "self.when > timestamp('2020-01-01T00:00:00Z') && self.when - duration('1s') < self.when",
        "any.m.a == 'x' && any['m']['a'] == 'x' && has(any.m.a) && any.l.exists(x, x == 2)",
        "any.?m.?z.orValue('d') == 'd' && any.m[?'a'].hasValue() && !any.l[?9].hasValue()",
        "self.s.split('').size() == 5 && self.s.lastIndexOf('l') == 3 && self.s.trim() == self.s",
    ] {
        gives(text, "true");
    }
}
