//! What a restricted pickle may consist of: containers, scalars, tensors, and the classes that make them.
//!
//! A class is a name here, not code: "calling" one of the list builds one of the objects below, and every other name is
//! refused when it is read, before anything could call it.

use super::element::TorchType;

/// The place of an object among all objects of a pickle.
pub(super) type Id = usize;

/// An object of a pickle. Containers hold places, so that shared objects are kept once.
#[derive(Clone, Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes,
    Class(Class),
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage(Storage),
    Tensor(Box<Stored>),
    /// A device, a layout, a memory format: nothing that matters to numbers.
    Word,
}

/// A storage: the record that holds a tensor's bytes.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) ty: TorchType,
    /// In elements of `ty`.
    pub(super) numel: u64,
}

/// A tensor as a view of a storage.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) storage: Storage,
    pub(super) ty: TorchType,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// The classes and functions that may be named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Class {
    OrderedDict,
    /// `set` and `frozenset`.
    Set,
    /// `torch.Size`
    Size,
    /// `torch.device`, layouts.
    Word,
    /// `_codecs.encode`: bytes as protocol 2 writes them.
    Encode,
    Storage(TorchType),
    /// `torch.float32`
    DType(TorchType),
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor with attributes.
    RebuildFromType,
    /// `torch.Tensor`, `torch.nn.Parameter`
    Tensor,
}

/// Dimensions that torch itself allows.
const MAX_RANK: usize = 64;
/// Keys are numbers, or in old files addresses.
const MAX_KEY: usize = 64;
/// So much of a class's name is shown.
const SHOWN: usize = 120;

impl Class {
    pub(super) fn named(module: &str, name: &str) -> Result<Class, String> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Class::OrderedDict),
            ("builtins" | "__builtin__", "set" | "frozenset") => Some(Class::Set),
            ("torch", "Size") => Some(Class::Size),
            ("torch", "device") | ("torch.serialization", "_get_layout") => Some(Class::Word),
            ("_codecs", "encode") => Some(Class::Encode),
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                Some(Class::RebuildTensor)
            }
            ("torch._utils", "_rebuild_tensor_v3") => Some(Class::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Some(Class::RebuildParameter)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Class::RebuildFromType),
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Some(Class::Tensor),
            ("torch" | "torch.storage" | "torch.cuda", storage) if storage.ends_with("Storage") => {
                TorchType::of_storage(storage).map(Class::Storage)
            }
            ("torch", dtype) => TorchType::of_dtype(dtype).map(Class::DType),
            _ => None,
        };
        found.ok_or_else(|| {
            let class: String =
                format!("{module}.{name}").escape_debug().take(SHOWN).collect();
            format!(
                "it holds an object of the class {class}, which is neither a tensor nor a container; nothing of it was run. \
                 Save model.state_dict() in PyTorch instead of the object itself"
            )
        })
    }
}

/// What a call gives.
enum Made {
    New(Object),
    Same(Id),
}

/// The objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Objects(Vec<Object>);

impl Objects {
    pub(super) fn add(&mut self, object: Object) -> Id {
        self.0.push(object);
        self.0.len() - 1
    }

    pub(super) fn get(&self, id: Id) -> &Object {
        &self.0[id]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.0[id]
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What calling `class` with the tuple `arguments` builds. What is there already is not copied: a pickle that
    /// wraps one long list again and again would otherwise cost its square.
    pub(super) fn call(&mut self, class: Id, arguments: Id) -> Result<Id, String> {
        match self.made_by(class, arguments)? {
            Made::New(object) => Ok(self.add(object)),
            Made::Same(id) => Ok(id),
        }
    }

    fn made_by(&self, class: Id, arguments: Id) -> Result<Made, String> {
        let Object::Class(class) = self.get(class) else {
            return Err("something is called that is no class".into());
        };
        let Object::Tuple(arguments) = self.get(arguments) else {
            return Err("a class is called without a tuple of arguments".into());
        };
        let first = arguments.first().map(|id| (*id, self.get(*id)));
        match (class, first) {
            (Class::OrderedDict, None) => Ok(Made::New(Object::Dict(Vec::new()))),
            (Class::OrderedDict, _) => Err("an OrderedDict with arguments is not supported".into()),
            (Class::Set, None) => Ok(Made::New(Object::List(Vec::new()))),
            (Class::Set, Some((id, Object::List(_)))) => Ok(Made::Same(id)),
            (Class::Set, _) => Err("a set is made from something that is no list".into()),
            (Class::Size, Some((id, Object::Tuple(_) | Object::List(_)))) => Ok(Made::Same(id)),
            (Class::Size, _) => Err("a torch.Size is made from something that is no tuple".into()),
            (Class::Word, _) => Ok(Made::New(Object::Word)),
            (Class::Encode, _) => Ok(Made::New(Object::Bytes)),
            (Class::RebuildTensor, _) => self.tensor(arguments, None).map(Made::New),
            (Class::RebuildTensorV3, _) => match arguments.get(6).map(|id| self.get(*id)) {
                Some(Object::Class(Class::DType(ty))) => {
                    self.tensor(arguments, Some(*ty)).map(Made::New)
                }
                _ => Err("a tensor has no dtype".into()),
            },
            (Class::RebuildParameter, Some((id, Object::Tensor(_)))) => Ok(Made::Same(id)),
            (Class::RebuildParameter, _) => {
                Err("a parameter is made from something that is no tensor".into())
            }
            (Class::RebuildFromType, _) => self.rebuilt(arguments),
            (Class::Storage(_) | Class::DType(_) | Class::Tensor, _) => {
                Err("a storage, a dtype or a tensor is called like a function".into())
            }
        }
    }

    /// `(function, class, arguments, state)`: what the function makes, if the class is torch's own.
    fn rebuilt(&self, arguments: &[Id]) -> Result<Made, String> {
        let [function, class, inner, ..] = arguments[..] else {
            return Err("a tensor is rebuilt from too little".into());
        };
        match (self.get(function), self.get(class)) {
            // One level only: this function is not among those that it may call.
            (Object::Class(Class::RebuildFromType), _) => {
                Err("a tensor is rebuilt from itself".into())
            }
            (_, Object::Class(Class::Tensor)) => self.made_by(function, inner),
            _ => Err("a tensor is rebuilt as something else".into()),
        }
    }

    /// `(storage, offset, size, stride, …)`
    fn tensor(&self, arguments: &[Id], ty: Option<TorchType>) -> Result<Object, String> {
        let [storage, offset, size, stride, ..] = arguments else {
            return Err("a tensor wants storage, offset, size and stride".into());
        };
        let Object::Storage(storage) = self.get(*storage) else {
            return Err("a tensor's storage is no storage".into());
        };
        let numbers = |id: Id| self.numbers(id).ok_or("a tensor's size or stride is no tuple");
        let (shape, strides) = (numbers(*size)?, numbers(*stride)?);
        let offset = self.number(*offset).ok_or("a tensor's offset is no number")?;
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return Err(format!("a tensor of shape {shape:?} has strides {strides:?}"));
        }
        let (storage, ty) = (storage.clone(), ty.unwrap_or(storage.ty));
        Ok(Object::Tensor(Box::new(Stored { storage, ty, offset, shape, strides })))
    }

    fn numbers(&self, id: Id) -> Option<Vec<u64>> {
        match self.get(id) {
            Object::Tuple(items) if items.len() <= 4 * MAX_RANK => {
                items.iter().map(|id| self.number(*id)).collect()
            }
            _ => None,
        }
    }

    fn number(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Object::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// `("storage", class, key, location, numel)`: the only thing that a pickle may refer to.
    pub(super) fn persistent(&self, id: Id) -> Result<Object, String> {
        let wrong = || "the file refers to something that is no storage".to_owned();
        let Object::Tuple(parts) = self.get(id) else { return Err(wrong()) };
        let [word, class, key, _location, numel, view @ ..] = &parts[..] else {
            return Err(wrong());
        };
        match (self.get(*word), self.get(*class), self.get(*key), self.number(*numel)) {
            (
                Object::Text(word),
                Object::Class(Class::Storage(ty)),
                Object::Text(key),
                Some(numel),
            ) if word == "storage" && key.len() <= MAX_KEY => {
                if view.iter().any(|id| !matches!(self.get(*id), Object::None)) {
                    return Err("a storage that is a view of another is not supported".into());
                }
                Ok(Object::Storage(Storage { key: key.clone(), ty: *ty, numel }))
            }
            _ => Err(wrong()),
        }
    }
}
