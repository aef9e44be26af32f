"Tokens to pictures: the token cache, the masked transformer, sampling and editing."
