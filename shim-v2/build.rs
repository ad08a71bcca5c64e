//! Generates the message types of `cri.proto`.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() {
    println!("cargo::rerun-if-changed=src/sandbox_api/cri.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .out_dir(&out)
        .input("src/sandbox_api/cri.proto")
        .include("src/sandbox_api")
        .rust_protobuf()
        .rust_protobuf_customize(
            ProtobufCustomize::default()
                .gen_mod_rs(false)
                .generate_accessors(false),
        )
        .run()
        .expect("cri.proto compiles");
    // The generated file opens with inner attributes, which `include!` refuses;
    // a module list of our own pulls it in as a file.
    std::fs::write(out.join("generated.rs"), "pub mod cri;\n").expect("OUT_DIR is writable");
}
