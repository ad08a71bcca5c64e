use kvm_ioctls::Kvm;

use super::*;

/// As many bits as no processor's linear addresses have; KVM refuses the leaf.
fn spoil(features: &mut CpuId) {
    for leaf in features.as_mut_slice() {
        if leaf.function == 0x8000_0008 {
            leaf.eax = 33 << 8;
        }
    }
}

#[test]
fn growth_that_failed_goes_on_when_asked_again() {
    let Ok(kvm) = Kvm::new().inspect_err(|error| println!("skipped: no KVM: {error}")) else {
        return;
    };
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let supported = cpuid::supported(&kvm).unwrap();
    let maker = VcpuMaker::new(vm.clone(), supported.clone(), 3);
    let latch = ExitLatch::new().unwrap();
    let good = VcpuThreads::start(Vec::new(), maker, &Arc::default(), &latch).unwrap();
    let mut spoilt = supported;
    spoil(&mut spoilt);
    let bad = VcpuThreads {
        maker: Arc::new(VcpuMaker::new(vm, spoilt, 3)),
        ..good.clone()
    };
    for _ in 0..2 {
        let error = crate::log::chain(&bad.grow(2).unwrap_err());
        assert!(error.starts_with("KVM refused vCPU 0: its proc"), "{error}");
    }
    // What failed counts for nothing.
    assert_eq!(good.grow(0).unwrap(), 0);
    // The first would run at once: this machine has no memory.
    good.stop.set();
    assert_eq!(good.grow(3).unwrap(), 3);
    good.stop();
    assert!(matches!(good.grow(3), Err(VcpuError::Ending)));
    assert_eq!(latch.exit(), None);
}
