//! Builds what tch lacks, under the feature `torch`, and tells the package above where libtorch lies.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/libtorch.cpp");
    #[cfg(feature = "torch")]
    build_for_libtorch();
}

#[cfg(feature = "torch")]
#[allow(clippy::disallowed_methods, reason = "so cargo tells build scripts")]
fn build_for_libtorch() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch lies");
    let include = std::path::Path::new(&lib).parent().expect("a folder above lib").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/libtorch.cpp")
        .compile("aolab_libtorch");
    println!("cargo:libtorch={lib}");
}
