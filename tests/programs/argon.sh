# Writes the input of GROMACS for a box of argon, and prepares it.
awk 'BEGIN {
    n = 10; d = 0.40; printf "argon\n%5d\n", n * n * n
    for (x = 0; x < n; x++) for (y = 0; y < n; y++) for (z = 0; z < n; z++)
        printf "%5d%-5s%5s%5d%8.3f%8.3f%8.3f\n", ++i % 100000, "AR", "AR", i % 100000, x * d, y * d, z * d
    printf "%10.5f%10.5f%10.5f\n", n * d, n * d, n * d
}' > conf.gro
cat > topol.top << 'END'
[ defaults ]
1 2 no 1.0 1.0
[ atomtypes ]
AR 18 39.948 0.0 A 0.34 0.996
[ moleculetype ]
AR 1
[ atoms ]
1 AR 1 AR AR 1 0.0 39.948
[ system ]
argon
[ molecules ]
AR 1000
END
cat > grompp.mdp << 'END'
integrator = md
dt = 0.002
nsteps = 36000
nstlog = 2000
nstenergy = 200
nstxout-compressed = 2000
cutoff-scheme = Verlet
rlist = 1.2
rcoulomb = 1.0
rvdw = 1.0
tcoupl = v-rescale
tc-grps = system
tau-t = 0.5
ref-t = 120
ld-seed = 4
gen-vel = yes
gen-temp = 120
gen-seed = 5
END
gmx -quiet grompp -f grompp.mdp -c conf.gro -p topol.top -o run.tpr > grompp.log 2>&1
