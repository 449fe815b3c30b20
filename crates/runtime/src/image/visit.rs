//! A node's images for whoever is not its agent: a command of the user, also while the agent runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Images, RegistryConfig, Role, layers_in_use};
use crate::Error;
use crate::seam::{Credentials, ImageStatus, Progress};

/// The image store of one node. What it changes the node's agent sees at its next look.
pub struct ImageStore {
    images: Arc<Images>,
    root: PathBuf,
}

impl ImageStore {
    /// `root` is the runtime's directory of the node.
    ///
    /// # Errors
    /// When the directory cannot be made, or its index cannot be read.
    pub fn open(root: &Path, registries: RegistryConfig) -> Result<ImageStore, Error> {
        let images = Arc::new(Images::open(&root.join("images"), registries, Role::Visitor)?);
        Ok(ImageStore { images, root: root.to_owned() })
    }

    /// Takes the images out of an archive.
    ///
    /// # Errors
    /// When it is no archive of images, or has none for this machine.
    pub async fn load(&self, archive: &Path) -> Result<Vec<ImageStatus>, Error> {
        self.images.load(archive).await
    }

    /// Fetches an image from its registry.
    ///
    /// # Errors
    /// What the registry or the format of the image is at fault of.
    pub async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Result<ImageStatus, Error> {
        self.images.pull(name, credentials, progress).await
    }

    pub fn list(&self) -> Vec<ImageStatus> {
        self.images.list()
    }

    /// Removes a name, or an image by its id. Layers that containers use stay on the disk. Blocks.
    ///
    /// # Errors
    /// [`Error::ImageMissing`] when there is no such image.
    pub fn remove(&self, text: &str) -> Result<(), Error> {
        if self.images.find(text).is_none() {
            return Err(Error::ImageMissing { name: text.to_owned() });
        }
        self.images.remove(text, || layers_in_use(&self.root))
    }
}

impl Drop for ImageStore {
    fn drop(&mut self) {
        // What stays is removed by the agent at its next start.
        let _ = crate::rooted::remove_path(&self.images.ingest);
    }
}
