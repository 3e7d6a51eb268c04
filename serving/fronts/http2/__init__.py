"""HTTP/2 (RFC 9113) for servers on asyncio: as much of it as gRPC's clients use, and no more.

Nothing is pushed, priorities are read over, and the connection begins with the preface ("prior
knowledge"). What a peer can make this hold or do is bounded everywhere.
"""
