//! The compiled object's own type information against core/abi: every structure, field, offset and size.

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{MemberAttr, Struct};
use libbpf_rs::{AsRawLibbpf, HasSize, libbpf_sys};

#[test]
fn the_object_has_the_layouts_of_core_abi() {
    let btf = Btf::from_raw("weft", weft_datapath::OBJECT).unwrap().expect("the object has type information");
    for layout in weft_abi::layouts() {
        let found: Struct = btf
            .type_by_name(layout.name)
            .unwrap_or_else(|| panic!("struct {} is used by no program", layout.name));
        assert_eq!(found.size(), layout.size, "size of struct {}", layout.name);
        assert_eq!(found.len(), layout.fields.len(), "fields of struct {}", layout.name);
        for (member, field) in found.iter().zip(&layout.fields) {
            assert_eq!(member.name.unwrap().to_string_lossy(), field.name, "in struct {}", layout.name);
            let MemberAttr::Normal { offset } = member.attr else { panic!("{} is a bit field", field.name) };
            assert_eq!(
                offset as usize,
                field.offset * 8,
                "offset of {} in struct {}",
                field.name,
                layout.name
            );
            // SAFETY: the type number is of this BTF.
            let size = unsafe {
                libbpf_sys::btf__resolve_size(btf.as_libbpf_object().as_ptr(), u32::from(member.ty))
            };
            assert_eq!(
                usize::try_from(size).unwrap(),
                field.size,
                "size of {} in struct {}",
                field.name,
                layout.name
            );
        }
    }
}
