"""Wire formats. A front translates a request into `InferRequest` and a response back; no more."""
