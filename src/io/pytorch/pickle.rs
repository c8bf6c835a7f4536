//! Pickle's stack machine, of which only what builds tensors and containers is left.
//!
//! No instruction runs code: a class is looked up in the list of [`Class::named`], and all else is refused by its name.
//! Each instruction makes at most one object, so that memory is bounded by the pickle's length.

use std::collections::HashMap;

use super::object::{Class, Id, Object, Objects};

/// What is built, and what of it is the root.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) objects: Objects,
    pub(super) root: Id,
}

/// Reads the pickle at the start of `bytes`; gives how many bytes it took, too.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle, usize), String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        objects: Objects::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let op = machine.take::<1>()?[0];
        if op == b'.' {
            let root = machine.pop()?;
            let Machine { objects, at, .. } = machine;
            return Ok((Pickle { objects, root }, at));
        }
        machine.step(op)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Objects,
    stack: Vec<Id>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            // PROTO, FRAME
            0x80 => drop(self.take::<1>()?),
            0x95 => drop(self.take::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(*self.stack.last().ok_or_else(empty)?),
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a | 0x8b => self.integer(op)?,
            b'G' => {
                let value = f64::from_be_bytes(self.take()?);
                self.push(Object::Float(value));
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.text(op)?,
            b'C' | b'B' | 0x8e | 0x96 => {
                let len = self.length(if op == b'C' {
                    1
                } else if op == b'B' {
                    4
                } else {
                    8
                })?;
                self.take_slice(len)?;
                self.push(Object::Bytes);
            }
            b'}' => self.push(Object::Dict(Vec::new())),
            b']' | 0x8f => self.push(Object::List(Vec::new())),
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => self.small_tuple(usize::from(op - 0x84))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items));
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Object::List(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = pairs(&items)?;
                self.push(Object::Dict(pairs));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op)?,
            b'c' | 0x93 | b'R' | 0x81 | b'b' | b'Q' => self.object(op)?,
            other => {
                return Err(format!(
                    "its pickle has the instruction {other:#04x} at byte {}, which no tensor or container needs",
                    self.at - 1
                ));
            }
        }
        Ok(())
    }

    fn integer(&mut self, op: u8) -> Result<(), String> {
        let value = match op {
            b'K' => i64::from(u8::from_le_bytes(self.take()?)),
            b'M' => i64::from(u16::from_le_bytes(self.take()?)),
            b'J' => i64::from(i32::from_le_bytes(self.take()?)),
            _ => {
                let len = self.length(if op == 0x8a { 1 } else { 4 })?;
                let digits = self.take_slice(len)?;
                let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut all = [if negative { 0xff } else { 0 }; 8];
                match all.get_mut(..digits.len()) {
                    Some(low) => low.copy_from_slice(digits),
                    // The magic number of files before zip has ten bytes; nothing else is so large.
                    None => {
                        self.push(Object::Word);
                        return Ok(());
                    }
                }
                i64::from_le_bytes(all)
            }
        };
        self.push(Object::Int(value));
        Ok(())
    }

    fn text(&mut self, op: u8) -> Result<(), String> {
        let len = self.length(match op {
            0x8c | b'U' => 1,
            0x8d => 8,
            _ => 4,
        })?;
        let text = str::from_utf8(self.take_slice(len)?).map_err(|_| "a text is not UTF-8")?;
        let text = text.to_owned();
        self.push(Object::Text(text));
        Ok(())
    }

    fn small_tuple(&mut self, len: usize) -> Result<(), String> {
        let from = self.stack.len().checked_sub(len).ok_or_else(empty)?;
        self.check_marks(from)?;
        let items = self.stack.split_off(from);
        self.push(Object::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.top()? {
            Object::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => Err("something is appended to what is no list".into()),
        }
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let pairs = pairs(items)?;
        match self.top()? {
            Object::Dict(dict) => {
                dict.extend(pairs);
                Ok(())
            }
            _ => Err("a key is set in what is no dict".into()),
        }
    }

    fn remember(&mut self, op: u8) -> Result<(), String> {
        let key = match op {
            b'q' | b'h' => u64::from(u8::from_le_bytes(self.take()?)),
            b'r' | b'j' => u64::from(u32::from_le_bytes(self.take()?)),
            _ => self.memo.len() as u64,
        };
        if matches!(op, b'h' | b'j') {
            let id = self.memo.get(&key).ok_or("the pickle recalls what it never kept")?;
            self.stack.push(*id);
        } else {
            self.memo.insert(key, *self.stack.last().ok_or_else(empty)?);
        }
        Ok(())
    }

    /// GLOBAL, STACK_GLOBAL, REDUCE, NEWOBJ, BUILD, BINPERSID
    fn object(&mut self, op: u8) -> Result<(), String> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let class = Class::named(&module, &name)?;
                self.push(Object::Class(class));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let class = match (self.objects.get(module), self.objects.get(name)) {
                    (Object::Text(module), Object::Text(name)) => Class::named(module, name)?,
                    _ => return Err("a class is named by something that is no text".into()),
                };
                self.push(Object::Class(class));
            }
            b'R' | 0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                let made = self.objects.call(class, arguments)?;
                self.stack.push(made);
            }
            b'b' => {
                // A state dict carries `_metadata`, a parameter its attributes: numbers need neither.
                self.pop()?;
                if !matches!(self.top()?, Object::Dict(_) | Object::Tensor(_)) {
                    return Err("a state is set on what is neither a dict nor a tensor".into());
                }
            }
            _ => {
                let id = self.pop()?;
                let object = self.objects.persistent(id)?;
                self.push(object);
            }
        }
        Ok(())
    }

    fn push(&mut self, object: Object) {
        let id = self.objects.add(object);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.stack.pop().ok_or_else(empty)?;
        self.check_marks(self.stack.len())?;
        Ok(id)
    }

    /// Nothing below the last mark is taken.
    fn check_marks(&self, height: usize) -> Result<(), String> {
        match self.marks.last() {
            Some(mark) if *mark > height => Err(empty()),
            _ => Ok(()),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Object, String> {
        let id = *self.stack.last().ok_or_else(empty)?;
        Ok(self.objects.get_mut(id))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (first, _) = self.bytes[self.at..].split_first_chunk::<N>().ok_or_else(short)?;
        self.at += N;
        Ok(*first)
    }

    fn take_slice(&mut self, len: u64) -> Result<&[u8], String> {
        let len = usize::try_from(len).map_err(|_| short())?;
        let slice = self.bytes[self.at..].get(..len).ok_or_else(short)?;
        self.at += len;
        Ok(slice)
    }

    fn length(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(match bytes {
            1 => u64::from(u8::from_le_bytes(self.take()?)),
            4 => u64::from(u32::from_le_bytes(self.take()?)),
            _ => u64::from_le_bytes(self.take()?),
        })
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(short)?;
        self.at += end + 1;
        str::from_utf8(&rest[..end]).map(str::to_owned).map_err(|_| "a name is not UTF-8".into())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a dict has a key without a value".into());
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

fn empty() -> String {
    "its pickle takes more from the stack than there is".into()
}

fn short() -> String {
    "its pickle ends too early: the file is cut short".into()
}
