fn main() -> std::process::ExitCode {
    requant::cli::main()
}
