//! A reader of AML that knows constants: scopes, devices, names, integers, packages and
//! buffers (ACPI 6.5, chapter 20), and the resource descriptors of such buffers (6.4). The
//! interpreters among the crates need an unstable compiler.

use std::collections::BTreeMap;

/// A constant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(u64),
    Package(Vec<Value>),
    Buffer(Vec<u8>),
}

impl Value {
    pub(crate) fn integer(&self) -> u64 {
        match self {
            Self::Integer(value) => *value,
            other => panic!("{other:?} is not an integer"),
        }
    }

    pub(crate) fn package(&self) -> &[Value] {
        match self {
            Self::Package(elements) => elements,
            other => panic!("{other:?} is not a package"),
        }
    }
}

/// What a device uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Ports: lowest and highest first one, how many.
    Ports(u16, u16, u8),
    /// Extended interrupt: flags, number.
    Interrupt(u8, u32),
    /// Address space: type (0 memory, 1 ports, 2 buses), lowest, highest, length.
    Space(u8, u64, u64, u64),
}

/// All names with their full paths.
pub(crate) fn names(code: &[u8]) -> BTreeMap<String, Value> {
    let mut names = BTreeMap::new();
    terms(&mut Reader(code), "", &mut names);
    names
}

fn terms(reader: &mut Reader<'_>, scope: &str, names: &mut BTreeMap<String, Value>) {
    while !reader.0.is_empty() {
        match reader.opcode() {
            0x10 | 0x5b82 => {
                let mut inner = reader.package();
                let path = inner.path(scope);
                terms(&mut inner, &path, names);
            }
            0x08 => {
                let path = reader.path(scope);
                let value = reader.value();
                assert!(names.insert(path.clone(), value).is_none(), "{path} twice");
            }
            other => panic!("opcode {other:#x} is not expected"),
        }
    }
}

/// The descriptors of a resource template.
pub(crate) fn resources(value: &Value) -> Vec<Resource> {
    let Value::Buffer(bytes) = value else {
        panic!("{value:?} is not a buffer");
    };
    let mut reader = Reader(bytes);
    let mut list = Vec::new();
    loop {
        match reader.u8() {
            0x79 => return list,
            0x47 => {
                assert_eq!(reader.u8(), 1, "16 address bits");
                let (low, high) = (reader.number(2) as u16, reader.number(2) as u16);
                reader.u8();
                list.push(Resource::Ports(low, high, reader.u8()));
            }
            tag @ 0x87..=0x8a => {
                let length = reader.number(2) as usize;
                let mut body = Reader(reader.take(length));
                list.push(large(tag, &mut body));
            }
            other => panic!("descriptor {other:#x} is not expected"),
        }
    }
}

fn large(tag: u8, body: &mut Reader<'_>) -> Resource {
    if tag == 0x89 {
        let flags = body.u8();
        assert_eq!(body.u8(), 1, "one interrupt");
        return Resource::Interrupt(flags, body.number(4) as u32);
    }
    let width = match tag {
        0x88 => 2,
        0x87 => 4,
        _ => 8,
    };
    let kind = body.u8();
    assert_eq!(body.u8() & 0xc, 0xc, "minimum and maximum are fixed");
    body.u8();
    assert_eq!(body.number(width), 0, "granularity");
    let (low, high) = (body.number(width), body.number(width));
    assert_eq!(body.number(width), 0, "translation");
    Resource::Space(kind, low, high, body.number(width))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(size);
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn number(&mut self, size: usize) -> u64 {
        let bytes = self.take(size).iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn opcode(&mut self) -> u16 {
        match self.u8() {
            0x5b => 0x5b00 | u16::from(self.u8()),
            opcode => opcode.into(),
        }
    }

    /// PkgLength and what it spans.
    fn package(&mut self) -> Reader<'a> {
        let whole = self.0.len();
        let lead = self.u8();
        let more = usize::from(lead >> 6);
        let length = match more {
            0 => usize::from(lead & 0x3f),
            _ => usize::from(lead & 0xf) | (self.number(more) as usize) << 4,
        };
        let used = whole - self.0.len();
        Reader(self.take(length - used))
    }

    fn path(&mut self, scope: &str) -> String {
        let mut path = scope.to_owned();
        if self.0[0] == b'\\' {
            self.u8();
            path.clear();
        }
        let segments = match self.0[0] {
            0x2e => {
                self.u8();
                2
            }
            _ => 1,
        };
        for _ in 0..segments {
            let name = std::str::from_utf8(self.take(4)).expect("a name is ASCII");
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(is_name), "{name:?} is no name");
            path = format!("{path}\\{name}");
        }
        path
    }

    fn value(&mut self) -> Value {
        Value::Integer(match self.u8() {
            0 => 0,
            1 => 1,
            0x0a => self.number(1),
            0x0b => self.number(2),
            0x0c => self.number(4),
            0x0e => self.number(8),
            0x12 => {
                let mut inner = self.package();
                let count = inner.u8();
                let elements = (0..count).map(|_| inner.value()).collect();
                assert!(
                    inner.0.is_empty(),
                    "the package is longer than its elements"
                );
                return Value::Package(elements);
            }
            0x11 => {
                let mut inner = self.package();
                let size = inner.value().integer() as usize;
                assert_eq!(inner.0.len(), size, "all of the buffer is initialized");
                return Value::Buffer(inner.0.to_vec());
            }
            other => panic!("constant {other:#x} is not expected"),
        })
    }
}
