"Pictures to tokens: the roadmap from Taming-VQGAN to VQGAN+ and lookup-free quantization, and the tokenizer."
