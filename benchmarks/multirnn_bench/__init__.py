"""Benchmarks: the same function on every backend and on its peers, verified first and timed side by side.

What is timed; a computation and what answers it are `Work` and `Prepared` of `multirnn.protocol`
    problems     tables of shapes
    inputs       weights and arrays drawn once for a problem
    contenders   every backend and implementation, and files of peers: those in `peers/` ship
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

On the command line
    cli          `multirnn bench` and `multirnn doctor`, which `multirnn.cli` finds by the name of this package
    doctor       what is slowing this machine
"""
