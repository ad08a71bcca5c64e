//! Generates the message types and the ttrpc client and server from `agent.proto`.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo::rerun-if-changed=agent.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .out_dir(&out)
        .input("agent.proto")
        .include(".")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(
            ProtobufCustomize::default()
                .gen_mod_rs(false)
                .generate_accessors(false),
        )
        .run()
        .expect("agent.proto compiles");
    // The generated files open with inner attributes, which `include!` refuses;
    // a module list of our own pulls them in as files.
    std::fs::write(
        out.join("generated.rs"),
        "pub mod agent;\npub mod agent_ttrpc;\n",
    )
    .expect("OUT_DIR is writable");
}
