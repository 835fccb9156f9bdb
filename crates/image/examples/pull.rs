//! Times pulls: `cargo run --release -p dhow-image --example pull -- ROOT IMAGE`. `ROOT` should be empty.

use dhow_image::{ImageStore, PullOptions, Quiet};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: pull ROOT IMAGE".into());
    };
    let root = Path::new(&root);
    std::fs::create_dir_all(root)?;
    let start = Instant::now();
    let db = state::Db::open(&root.join("state.db"))?;
    let images = ImageStore::open(root, Rc::new(db))?;
    let pulled = images.pull(&types::ImageRef::parse(&name)?, &PullOptions::default(), &Quiet)?;
    println!("{} in {:?}", pulled.digest, start.elapsed());
    Ok(())
}
