"""What a tokenizer alone gives back of pictures, drawn as any generator's pictures are."""
