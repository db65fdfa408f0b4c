"""Benchmarks: the same function on every backend and on its peers, verified first and timed side by side.

What is timed, and by whom
    problems     tables of shapes
    work         what a contender is told to compute, and what it answers with
    inputs       weights and arrays drawn once for a problem
    contenders   every backend and implementation, and files of peers
    ours         a backend in one of its implementations as a contender

How
    verify       the float64 reference, and how far a contender is from it
    worker       the process of one contender; `process` is its other end, `said` what it prints, `keeper` who ends what is left
    rounds       interleaved rounds over all contenders
    run          a table from its first problem to its last; `seats`, its contenders
    results      the file of rows, and `fields`, what has to be in each

On what
    machine      processor, versions, BLAS, load
    ceilings     rates of products and of reading, measured in processes of their own: `alone`, `gauges`
    limits       what no implementation can be faster than

What came out
    statistics   quartiles, paired ratios, intervals, and two files compared
    standing     who is fastest, by how much, and what was not timed
    report       Markdown and one HTML page: `charts`, `markup`, `quantities`
"""
