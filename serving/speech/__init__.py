"""Speech recognition without the model: recordings before it, and text after it.

Training measures with the same code that serves. `audio` needs the packages of the extra `audio`.
"""
