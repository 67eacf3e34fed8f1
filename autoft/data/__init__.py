"""From a folder of images to rows of pixels: listing, decoding, split, caches. No torch here."""
