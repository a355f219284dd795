"""`octavo chat`: a conversation in the terminal, with a model in this process or with any OpenAI-compatible server.

talk.py      what the two have in common
offline.py   a model in this process, without Ray
server.py    a model behind a URL
screen.py    answers as they grow: Markdown in a terminal, plain text elsewhere
terminal.py  questions, commands, history
command.py   which of the two is meant
"""
