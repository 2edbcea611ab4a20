"""The asyncio shell: carries out what the core orders. It decides nothing."""
