"""Where patches come from: Kaggle's layout, PatchCamelyon's files, folders of images."""
