"""The interfaces of other registration programs, one package each: change one line and go on.

What an option of theirs becomes is one of three things, and the documentation lists which: *honoured*, *approximated*
(a documented substitute) or *refused*, which is an `OptionError` that names it. Nothing is ignored.
"""
