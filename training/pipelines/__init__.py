"""Local `diffusers` pipelines, as the graphs that are served.

DDPMPipeline, DDIMPipeline   pixels: one graph, and classes if its UNet has them
StableDiffusionPipeline      a text encoder, a UNet over latents, and a decoder from them to pixels
"""
