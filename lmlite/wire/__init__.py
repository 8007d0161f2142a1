"""HTTP for one connection: bytes to requests (`http1`), answers to bytes (`http1`, `sse`), which requests are let in
(`guard`), where they go (`router`), and the asyncio protocol that joins these to a handler (`connection`)."""
