//! Where every field of every shared structure lies, for comparison with the BTF of the compiled object.

/// One field: its name in C, its offset and size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// One structure, by its name in C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub size: usize,
    pub fields: Vec<Field>,
}

/// Declares a structure once for Rust and for the layout check; the fields carry their C names.
macro_rules! shared {
    ($(#[$meta:meta])* $c_name:literal $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $name {
            pub fn layout() -> $crate::Layout {
                $crate::Layout {
                    name: $c_name,
                    size: size_of::<Self>(),
                    fields: vec![$($crate::Field {
                        name: stringify!($field),
                        offset: std::mem::offset_of!(Self, $field),
                        size: size_of::<$type>(),
                    },)*],
                }
            }
        }
    };
}

pub(crate) use shared;

/// Every structure that crosses the boundary.
pub fn layouts() -> Vec<Layout> {
    vec![
        crate::AddrKey::layout(),
        crate::PrefixKey::layout(),
        crate::EndpointValue::layout(),
        crate::PolicyMapKey::layout(),
        crate::PolicyValue::layout(),
        crate::RouteValue::layout(),
        crate::ServiceKey::layout(),
        crate::ServiceValue::layout(),
        crate::BackendKey::layout(),
        crate::BackendValue::layout(),
        crate::MemberKey::layout(),
        crate::SourceKey::layout(),
        crate::AffinityKey::layout(),
        crate::AffinityValue::layout(),
        crate::ConnectedValue::layout(),
        crate::NatKey::layout(),
        crate::NatValue::layout(),
        crate::ReverseKey::layout(),
        crate::ReverseValue::layout(),
        crate::EndValue::layout(),
        crate::FlowKey::layout(),
        crate::FlowValue::layout(),
        crate::FragmentKey::layout(),
        crate::FragmentValue::layout(),
        crate::RawEvent::layout(),
        crate::Count::layout(),
        crate::Config::layout(),
    ]
}
