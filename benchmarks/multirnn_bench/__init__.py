"""Benchmarks: the same function on every backend and on its peers, verified first and timed side by side.

What is timed; a computation and its answer are `Work` and `Prepared` of `multirnn.protocol`
    problems      shapes, and their tables in CSV files
    inputs        weights and arrays drawn once for a problem
    contenders    every backend and implementation, and files of peers: those in `peers/` ship
    ours          a backend in one of its implementations as a contender

How
    verify        the float64 reference, and the error of a contender
    worker        the process of one contender; `process` its other end, alone and in parallel, `said` its output, `keeper` its end
    rounds        interleaved rounds over all contenders
    run           a table from its first problem to its last
    results       the file of rows, and `fields`, what each must have

On what
    machine       processor, versions, BLAS, load; `interference`, by the hypervisor
    ceilings      rates of products and of reading, measured in processes of their own: `alone`, `gauges`
    limits        the least time that the ceilings allow

What came out
    statistics    quartiles, paired ratios, intervals, and two files compared
    standing      who is fastest, by how much, and what was not timed
    report        Markdown; `page`, one HTML page by `templates/` and `charts`; `quantities`, numbers in words

On the command line
    cli           `multirnn bench` and `multirnn doctor`, which `multirnn.cli` finds by the name of this package
    doctor        what slows recurrent layers on this machine
"""
