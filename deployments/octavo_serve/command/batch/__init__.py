"""`octavo batch`: the lines of a file answered into another one.

command     where they are answered, what is said meanwhile
offline     by a model in this process
server      by a server that has batches
"""
